"""The team of threads computes every piece of a job once, whatever its threads do; the claims are in team.cpp."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from opt_trt.plugins.native.library import PLUGINS, find_compiler

SOURCE = Path(__file__).with_name("team.cpp")
CLAIMS = re.findall(r"CLAIM\((\w+)\)[,}]", SOURCE.read_text())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("team") / "team"
    flags = ("-std=c++20", "-O1", "-pthread", f"-I{PLUGINS.parents[1]}")
    subprocess.run([find_compiler(), *flags, str(SOURCE), "-o", str(out)], check=True)
    return out


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_team_keeps_the_claim(program: Path, claim: str) -> None:
    assert subprocess.run([program, claim], timeout=100, check=False).returncode == 0


def test_all_claims_were_found() -> None:
    assert len(CLAIMS) == SOURCE.read_text().count("\nbool ") - 1  # each_once is no claim
