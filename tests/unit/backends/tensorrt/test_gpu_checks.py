"""The tests that wait for a GPU work: they pass over a stand-in of the library that computes by the interpreter."""

from __future__ import annotations

import re

import pytest

from tests._processes import run_python
from tests.unit.backends.tensorrt._networks import needs_library

# Parts of names, and the number of tests that each finds; the others take minutes on a CPU.
TESTS = {"nibbles": 1, "behind_the_end": 1, "compiled_once": 1, "summaries": 1, "minus_128": 1, "350m_kind": 4}


@needs_library
@pytest.mark.slow
def test_the_checks_for_a_gpu_pass_over_the_stand_in(tmp_path) -> None:
    plugin, chosen = "tests.unit.backends.tensorrt._stand_in_gpu", " or ".join(TESTS)
    ran = run_python(
        "-m", "pytest", "-p", plugin, "-k", chosen, "tests/gpu/test_tensorrt.py",
        environment={"XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 0 and re.search(rf"^\.{{{sum(TESTS.values())}}} ", ran.stdout, re.MULTILINE), (
        ran.stdout + ran.stderr
    )
