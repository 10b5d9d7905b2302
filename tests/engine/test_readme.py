"""What the README says is true today: its commands run, its files and tests exist, its first command comes early."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_benchmarks import SCRIPTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PIPELINE = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python ")]


def test_the_first_command_comes_within_twenty_lines():
    assert README.splitlines()[:20].count("make demo") == 1


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_every_stage_has_a_command():
    scripts = [line.split()[1] for line in PIPELINE if not line.startswith("python -m ")]
    assert scripts == ["convert_checkpoint.py", "build.py", "run.py", "summarize.py"]


def test_the_pipelines_commands_run(tmp_path):
    """As written, but into a directory of the test's own."""
    printed = ""
    for line in PIPELINE:
        words = line.replace(" work/", f" {tmp_path}/").replace("python ", f"{sys.executable} ", 1)
        result = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        printed += result.stdout
    assert "the accuracy gate passed" in printed
    assert not list(ROOT.glob("model.cache.*"))


def test_the_python_example_answers_its_prompts():
    [example] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    result = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for prompt in re.findall(r'\["(.*?)", "(.*?)"\]', example)[0]:
        assert re.search(rf"^{prompt}  ?\w+", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("articles", [{"ARTICLES": "8"}, pytest.param({}, marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_demo_script_ends_with_a_table_and_the_gate_passed(tmp_path, articles):
    environment = os.environ | {"PYTHON": sys.executable, "WORK": str(tmp_path / "demo")} | articles
    result = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "examples/demo/demo.sh" in result.stdout
    result = subprocess.run(
        ["bash", "examples/demo/demo.sh"], cwd=ROOT, capture_output=True, text=True, env=environment
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "int4 vs HF" in result.stdout and "the accuracy gate passed" in result.stdout


@pytest.mark.parametrize("proof", sorted(set(re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", README))))
def test_the_support_matrix_names_tests_that_exist(proof):
    file, name = proof
    names = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}
    assert not name or name in names


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_numbers_come_with_commands_that_run_from_a_checkout():
    """Those that tests/unit/test_benchmarks.py starts."""
    scripts = {ROOT / script for script in re.findall(r"benchmarks/\w+\.py", README)}
    assert len(scripts) >= 3 and scripts <= {path.absolute() for path in SCRIPTS}
