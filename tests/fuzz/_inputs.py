"""Make inputs from seeds, have them read, and say what is wrong with the way in which they were answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from tests._processes import ROOT
from tests.fuzz._mutations import mutate
from tests.fuzz._targets import TARGETS
from tests.fuzz._zygote import MEMORY, SECONDS

LONGEST_LINE = 2300  # characters that a command may print on stderr: a message and its name
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Fuzzer:
    """A process that reads inputs in children of its own; inputs that were answered rightly are removed."""

    def __init__(self, work: Path) -> None:
        self.work = work
        words = [sys.executable, "-m", "tests.fuzz._zygote"]
        home = {"XDG_CACHE_HOME": str(work / "cache"), "HF_HOME": str(work / "hub")}
        self._zygote = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | home,
        )

    def close(self) -> None:
        """End the process."""
        self._zygote.communicate()

    def problems(self, target: str, seed: int, count: int) -> list[str]:
        """Return a line for every input of a seed that was not answered rightly."""
        good = self.work / "good" / target.replace(" ", "_")
        if not good.exists():
            good.mkdir(parents=True)
            TARGETS[target].make(good)
            if problem := self._problem(target, self._case(target, good, None), "nothing was changed"):
                return [f"{target}: {problem}"]
        return [line for number in range(count) if (line := self._try(target, good, seed, number))]

    def _try(self, target: str, good: Path, seed: int, number: int) -> str:
        case = self._case(target, good, number)
        what = mutate(case / "in", Random(f"{seed}/{target}/{number}"))
        problem = self._problem(target, case, what)
        if problem:
            return f"{target}, seed {seed}, number {number} ({what}): {problem}; the input is {case / 'in'}"
        shutil.rmtree(case)
        return ""

    def _case(self, target: str, good: Path, number: int | None) -> Path:
        case = self.work / f"{target.replace(' ', '_')}-{number}"
        shutil.rmtree(case, ignore_errors=True)
        (case / "tmp").mkdir(parents=True)
        shutil.copytree(good, case / "in")
        (case / "good").symlink_to(good)
        return case

    def _answer(self, target: str, case: Path) -> tuple[int, float, int]:
        """Return exit code, seconds and bytes of a reader."""
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.write(json.dumps([target, str(case)]) + "\n")
        self._zygote.stdin.flush()
        code, seconds, memory = json.loads(self._zygote.stdout.readline())
        return code, seconds, memory

    def _problem(self, target: str, case: Path, what: str) -> str:
        before = _names(case)
        code, seconds, memory = self._answer(target, case)
        if seconds > SECONDS:  # a busy machine may have stopped it: what hangs will hang again
            code, seconds, memory = self._answer(target, case)
        said = (case / "stderr").read_text(errors="replace")
        checks = {
            f"{memory >> 20} MiB": memory > MEMORY,
            f"{seconds:.0f} s": seconds > SECONDS,
            f"signal {-code}": code < 0,
            "a traceback": "Traceback" in said,
            f"exit code {code}": code not in TARGETS[target].codes,
            "a good input was refused": code != 0 and what == "nothing was changed",
            "no error line": code == 2 and said.splitlines()[-1:] != [_last_error(said)],
            "a long line": any(len(line) > LONGEST_LINE for line in said.splitlines()),
            "control characters": any(
                c in said + (case / "stdout").read_text(errors="replace") for c in "\x1b\x07\0\u202e"
            ),
            "a line of somebody else": any(line.startswith("::") for line in said.splitlines()),
            "output left behind": code != 0 and _names(case) != before,
        }
        found = [problem for problem, holds in checks.items() if holds]
        return ", ".join(found) and f"{', '.join(found)}: {said[-300:]!r}"


def _names(case: Path) -> set[str]:
    return {str(path.relative_to(case)) for path in case.rglob("*")} - {"stdout", "stderr"}


def _last_error(said: str) -> str:
    return next((line for line in reversed(said.splitlines()) if line.startswith("error: ")), "none")
