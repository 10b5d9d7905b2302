"""README and documents are true today: their commands run, and their links, paths and messages exist."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine._documents import DOCUMENTS, ROOT, Block, Checkout, blocks_of, program
from tests.unit.benchmarks.test_benchmarks import SCRIPTS

README = (ROOT / "README.md").read_text()
TEXTS = {document: (ROOT / document).read_text() for document in DOCUMENTS}
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
HAS_RUNNER = ("make demo", "mpirun -n 2 ")  # beside the commands of opt_trt

NOT_RUN = {  # how a command begins: why the tests of this file do not run it
    "python3 -m venv": "the environment of the tests stands in for a new one",
    "source ": "the environment of the tests is active",
    ".venv/bin/pip install": "needs a package index",
    "pip install": "needs a package index",
    "git clone": "needs the repository's address",
    "hf download": "needs the hub; the demo model stands in for the model",
    "make demo-tp": "tests/engine/test_demo_ranks.py runs what it runs",
    "make": "sets up an environment, then runs all tests or removes files",
    "python -m pytest": "it is pytest that runs this",
    "python -m ruff": "`make test` runs it",
    "python -m mypy": "`make test` runs it",
    "python benchmarks/": "takes minutes, idle; tests/unit/benchmarks/test_benchmarks.py starts every script",
    "python examples/demo/": "takes minutes; tests/unit/examples/test_demo.py checks what they made",
    "mpirun -n 4 ": "the same as with two ranks, which the slow test runs",
    "mpirun -n 8 ": "needs two hosts; tests/ranks/test_network.py does it with two networks",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A place like a clone, in which this process is until the last test of this file."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("checkout")
        patch.chdir(directory)
        yield Checkout(directory)
    signal.signal(signal.SIGTERM, handler)  # commands set their own


def is_run(command: str) -> bool:
    return program(command.split()) is not None or command.startswith(HAS_RUNNER)


def steps(document: str, mark: str) -> list[Block | str]:
    """Return what is run of the blocks of a document that are marked so: programs in Python, commands of bash."""
    found: list[Block | str] = []
    for block in BLOCKS:
        if (block.document, block.mark.partition(":")[0]) == (document, mark):
            found += [block] if block.language == "python" else filter(is_run, block.commands)
    return found


def follow(document: str, checkout: Checkout, mark: str = "") -> str:
    """Run the steps of a document, and return what they print."""
    return "".join(checkout.execute(s) if isinstance(s, Block) else checkout.run(s) for s in steps(document, mark))


def test_every_block_is_run_or_says_why_not():
    """Fails for a new command of a document until it runs, is marked in its fence, or has a row in `NOT_RUN`."""
    unmarked = [block for block in BLOCKS if not re.fullmatch(r"(slow|not-run): \S.*", block.mark)]
    assert not [block for block in unmarked if block.mark]
    commands = [(block.document, c) for block in unmarked if block.language == "bash" for c in block.commands]
    assert not [(d, c) for d, c in commands if not is_run(c) and not c.startswith(tuple(NOT_RUN))]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if steps(d, "")])
def test_the_commands_of_a_document_run(document, checkout):
    """As written, in one directory; what the README makes is there for the others."""
    follow("README.md", checkout)
    follow(document, checkout)


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if steps(d, "slow")])
def test_the_slow_commands_of_a_document_run(document, checkout):
    follow("README.md", checkout)
    follow(document, checkout, "slow")


def test_the_readmes_commands_print_what_it_promises(checkout):
    printed = follow("README.md", checkout)
    assert "engine vs HF" in printed  # the demo's table
    assert "Input [Text 0]" in printed and "Output [Text 0" in printed
    assert printed.count("the accuracy gate passed") == 2  # of the demo, and of the section on CI
    for prompt in re.findall(r'\["(.*?)", "(.*?)"\]', README)[0]:
        assert re.search(rf"^{prompt}  ?\w+", printed, re.MULTILINE)


@pytest.mark.parametrize("flags", re.findall(r"`(--(?:top_k|num_b|rep|pen|stop).*?)`(?= [|]|[,;])", README))
def test_the_flags_of_a_goal_run(flags, checkout):
    follow("README.md", checkout)
    short = "python run.py --engine_dir work/engine --tokenizer_dir opt-125m --max_output_len 4 --input_text Today"
    assert "Output [Text 0" in checkout.run(f"{short} {flags}")


def test_every_stage_has_a_command():
    real = next(block for block in BLOCKS if "hf download" in block.text)
    assert [program(command.split())[0] for command in real.commands[1:]] == ["convert", "build", "run"]


@pytest.mark.slow
def test_the_demo_of_three_precisions_passes_its_gate(tmp_path):
    """Run what `make demo` runs; the tests above run it with one precision and few articles."""
    shown = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert "examples/demo/demo.sh" in shown.stdout
    environment = os.environ | {"PYTHON": sys.executable, "WORK": str(tmp_path / "demo")}
    words = ["bash", "examples/demo/demo.sh"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "int4 vs HF" in result.stdout and "the accuracy gate passed" in result.stdout


def test_the_first_command_comes_within_twenty_lines():
    assert README.splitlines()[:20].count("make demo") == 1


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 110


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tests_that_documents_name_exist(document):
    for file, name in set(re.findall(r"`(tests/\S+?\.py)(?:::(\w+))?`", TEXTS[document])):
        tree = ast.parse((ROOT / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in names, f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[document])
    assert not [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]


def test_paths_of_the_code_that_readme_and_contributing_name_exist():
    """Those that begin with `opt_trt/`, and those in the tables of where things go, which leave it out."""
    tables = README[README.index("| to add |") :] + TEXTS["CONTRIBUTING.md"].split("| path |")[1].split("\n\n")[0]
    short = re.findall(r"`(?!opt_trt/)([a-z_]+/[\w/.]*|[a-z_]+\.py)`", tables)
    full = re.findall(r"`opt_trt/([a-z_/.]*)`", README + TEXTS["CONTRIBUTING.md"])
    assert len(short) > 20 and len(full) > 10
    assert not [path for path in short + full if not (ROOT / "opt_trt" / path).exists()]


def test_the_support_table_of_the_readme_has_one_proof_a_row():
    table = README[README.index("| proved by |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) >= 8 and all(row.count("`tests/") == 1 for row in table)


def test_numbers_come_with_commands_that_run_from_a_checkout():
    """Those that tests/unit/benchmarks/test_benchmarks.py starts."""
    known = {path.absolute() for path in SCRIPTS}
    for text in TEXTS.values():
        assert {ROOT / script for script in re.findall(r"python (benchmarks/\w+\.py)", text)} <= known


def test_quoted_messages_are_those_of_the_code():
    """Look at the first column of docs/troubleshooting.md; `…` stands for words that differ from case to case."""
    rows = re.findall(r"^\| `([^`]+)`", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    known = (ROOT / "Makefile").read_text() + "".join(map(strings_of, (ROOT / "opt_trt").rglob("*.py")))
    pieces = [(row, piece.strip()) for row in rows for piece in re.split(r"…|--\w+", row) if len(piece.strip()) > 3]
    assert len(rows) >= 20 and not [row for row, piece in pieces if piece not in known]


def strings_of(path: Path) -> str:
    """Return all string constants of a module, parts of formatted ones included."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
