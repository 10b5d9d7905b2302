"""The package: versions that are tested lie in the ranges, scripts exist, and `python -m build` is PyPI's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from opt_trt import commands
from opt_trt.host.extras import NEEDED
from tests._processes import run_python

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked(*names: str) -> dict[str, str]:
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    return {r.name: str(r.specifier).removeprefix("==") for r in requirements(lines)}


LOCK = locked("requirements.txt", "requirements-dev.txt", "requirements-tensorrt.txt")
LOWEST = locked("requirements-trtllm.txt")
RANGES = requirements([*PROJECT["dependencies"], *(r for e in PROJECT["optional-dependencies"].values() for r in e)])


@pytest.mark.parametrize("required", [r for r in RANGES if r.name != "opt_trt"], ids=lambda r: r.name)
def test_the_versions_that_are_tested_are_in_the_ranges(required):
    assert required.specifier.contains(LOCK[required.name])
    if required.name in LOWEST:
        assert required.specifier.contains(LOWEST[required.name])


def test_every_command_needs_what_the_package_depends_on():
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == set(NEEDED)


def test_every_command_has_a_console_script():
    scripts = {target.removeprefix("opt_trt.commands:"): name for name, target in PROJECT["scripts"].items()}
    assert scripts == {name: f"opt-trt-{name.replace('_', '-')}" for name in commands.COMMANDS}


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("datasets", "eval", ["summarize.py", "--test_trt_llm", "--engine_dir", "none"]),
        ("rouge_score", "eval", ["summarize.py", "--test_trt_llm", "--engine_dir", "none"]),
        ("mpi4py", "mpi", ["run.py", "--max_output_len", "1", "--engine_dir", "none"]),
    ],
)
def test_a_package_that_one_command_needs_is_named_with_its_extra(tmp_path, package, extra, command):
    lacking = f"import sys; sys.modules[{package!r}] = None"
    (tmp_path / "sitecustomize.py").write_text(lacking)
    ranks = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"} if package == "mpi4py" else {}
    result = run_python(*command, environment={"PYTHONPATH": str(tmp_path), **ranks})
    said = f"error: this command needs the package {package}, which is not installed: pip install 'opt_trt[{extra}]'\n"
    assert (result.returncode, result.stderr[-len(said) :]) == (2, said)


def test_an_environment_without_torch_costs_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    result = run_python("convert_checkpoint.py", "--model_dir", "m", environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2 and re.fullmatch(
        r"error: torch is not installed for \S+; activate the environment .*\n", result.stderr
    )


def test_python_m_build_is_the_package_of_that_name(tmp_path):
    missing = run_python("-m", "build", "--version", environment={"PYTHONPATH": str(tmp_path)})
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "__init__.py").touch()
    (tmp_path / "build" / "__main__.py").write_text("import sys; print('the other one', sys.argv[1:])")
    result = run_python("-m", "build", "--version", environment={"PYTHONPATH": str(tmp_path)})
    assert (result.returncode, result.stdout) == (0, "the other one ['--version']\n")
    assert missing.returncode == 0 or "pip install build" in missing.stderr
