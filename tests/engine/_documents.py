"""Read the fenced blocks of README and documents, and run their commands as a new user would, in one directory."""

from __future__ import annotations

import io
import re
import shlex
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tests._processes import run
from tests.engine._mpi import launcher

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md", "benchmarks/README.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^( *)```(bash|python)(?: +(\S[^\n]*))?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMAND_OF = {"convert_checkpoint.py": "convert", "build.py": "build", "run.py": "run", "summarize.py": "summarize"}
MODEL = "examples/demo/model"
STAND_INS = {  # a name that documents use: what it leads to here
    "opt-125m": MODEL, "TOKENIZER": MODEL, "CHECKPOINT": "work/checkpoint", "ENGINE": "work/engine",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is what follows the language: nothing, `slow: WHY` or `not-run: WHY`."""

    document: str
    language: str
    mark: str
    text: str

    @property
    def synopsis(self) -> bool:
        """True if it shows how something is called, and is no program: `[flags]`, or a signature."""
        return "[flags]" in self.text if self.language == "bash" else "import " not in self.text

    @property
    def commands(self) -> list[str]:
        """The lines of a bash block, continued ones joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks_of(document: str) -> list[Block]:
    """Return the bash and python blocks of a document that can be run, in order."""
    found = FENCE.findall((ROOT / document).read_text())
    blocks = [Block(document, language, mark, re.sub(f"^{i}", "", t, flags=re.M)) for i, language, mark, t in found]
    return [block for block in blocks if not block.synopsis]


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the command of opt_trt that a command line starts, with its arguments; None for other programs."""
    match words:
        case ["python", script, *rest] if script in COMMAND_OF:
            return COMMAND_OF[script], rest
        case ["python", "-m", "opt_trt", name, *rest]:
            return name, rest
        case ["python", "-m", module, *rest] if module.startswith("opt_trt."):
            return module.removeprefix("opt_trt."), rest
        case [script, *rest] if script.startswith("opt-trt-"):
            return script.removeprefix("opt-trt-").replace("-", "_"), rest
    return None


@dataclass
class Checkout:
    """A directory that looks like a clone of the repository, with the demo model in the place of a downloaded one.

    A command that has run is not run again: documents that begin alike share checkpoints and engines.
    """

    directory: Path
    printed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("examples", "benchmarks", "tests", *COMMAND_OF):
            (self.directory / name).symlink_to(ROOT / name)
        for name, target in STAND_INS.items():
            (self.directory / name).symlink_to(target)

    def execute(self, block: Block) -> str:
        """Run a python block once in this process, which must be in `directory`; return what it prints."""
        if block.text not in self.printed:
            code = compile(block.text, block.document, "exec")
            self.printed[block.text] = _captured(lambda: exec(code, {"__name__": "__main__"}))
        return self.printed[block.text]

    def run(self, command: str) -> str:
        """Run a command line once, and return what it prints."""
        if command not in self.printed:
            self.printed[command] = self._run(shlex.split(command, comments=True))
        return self.printed[command]

    def _run(self, words: list[str]) -> str:
        if (found := program(words)) is not None:
            return _captured(lambda: _call(*found))
        if words == ["make", "demo"]:
            few = {"PYTHON": sys.executable, "WORK": str(self.directory / "work/demo")}
            return _finished(["bash", "examples/demo/demo.sh"], few | {"PRECISIONS": "fp16", "ARTICLES": "8"})
        assert words[:2] == ["mpirun", "-n"], words
        return _finished([*launcher(int(words[2])), sys.executable, *words[words.index("python") + 1 :]], {})


def _call(name: str, arguments: list[str]) -> None:
    """Call what the console script of a command calls."""
    script = f"opt-trt-{name.replace('_', '-')}"
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][script]
    module, _, function = entry.partition(":")
    argv, sys.argv = sys.argv, [script, *arguments]
    try:
        getattr(import_module(module), function)()
    finally:
        sys.argv = argv


def _captured(call) -> str:
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            call()
    except SystemExit as end:
        assert not end.code, f"exit code {end.code}\n{out.getvalue()}{errors.getvalue()}"
    return out.getvalue()


def _finished(words: list[str], environment: dict[str, str]) -> str:
    result = run(*words, environment=environment, cwd=None)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
