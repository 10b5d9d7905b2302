"""Start programs for tests, as a shell in the foreground starts them: with output captured, and heeding Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextmanager
def heeded_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt here and end the programs that are started meanwhile.

    A shell lets commands in the background (`make test &`, nohup, cron) ignore it, and programs inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the default, once another program is executed
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start(*words: object, environment: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[Any]:
    """Start a program in the root of the repository; `environment` is added to this process's."""
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with heeded_ctrl_c():
        return subprocess.Popen([*map(str, words)], env=os.environ | (environment or {}), **(captured | how))


def run(
    *words: object, timeout: float | None = None, input: str | None = None, **how: Any
) -> subprocess.CompletedProcess[Any]:
    """Start a program, give it `input`, wait for its end and return its exit code and output."""
    with start(*words, **how | ({} if input is None else {"stdin": subprocess.PIPE})) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def start_python(*words: object, **how: Any) -> subprocess.Popen[Any]:
    """Start this interpreter."""
    return start(sys.executable, *words, **how)


def run_python(*words: object, **how: Any) -> subprocess.CompletedProcess[Any]:
    """Run this interpreter to its end."""
    return run(sys.executable, *words, **how)
