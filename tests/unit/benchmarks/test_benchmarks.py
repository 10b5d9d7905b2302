"""Benchmarks start from a checkout without an installation."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests._processes import ROOT, run_python

SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text())


def test_there_are_benchmarks() -> None:
    assert len(SCRIPTS) >= 6


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_says_how_to_run_it(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    monkeypatch.setattr("sys.path", [*sys.path])  # scripts add to it
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert not stop.value.code and f"python benchmarks/{script.name}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_starts_in_a_process_of_its_own(script: Path) -> None:
    shown = run_python(script.relative_to(ROOT), "--help", environment={"PYTHONPATH": ""})
    assert shown.returncode == 0 and f"python benchmarks/{script.name}" in shown.stdout, shown.stderr
