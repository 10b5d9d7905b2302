"""Benchmarks start from a checkout without an installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text())


def test_there_are_benchmarks() -> None:
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_says_how_to_run_it(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, script.relative_to(ROOT), "--help"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and f"python benchmarks/{script.name}" in shown.stdout, shown.stderr
