"""Run TensorRT-LLM's builder as a process: print its log, count its ranks, and end it with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opt_trt.host.progress import Bar

RANK_BUILT, ALL_BUILT = "Total time of building ", "Total time of building all engines"
KEPT = 400  # lines kept from the end of the log: a traceback and what led to it
GRACE_SECONDS = 10.0  # between asking the builder to end and killing it


def run_builder(command: Sequence[str], ranks: int, talks: bool) -> tuple[int, list[str]]:
    """Run it to its end; return its exit code and the last lines of its log. If it `talks`, stderr gets the log."""
    kept = deque[str](maxlen=KEPT)
    with (
        _started(command) as process,
        Bar(
            total=ranks, desc="ranks built", unit="rank", file=sys.stderr, leave=False, disable=None if talks else True
        ) as bar,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            kept.append(line.rstrip("\n"))
            if talks:
                Bar.write(kept[-1], file=sys.stderr)
            if RANK_BUILT in line and ALL_BUILT not in line:
                bar.update()
        return process.wait(), list(kept)


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start the process in a group of processes that ends with the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        with process:
            try:
                yield process
            except BaseException:
                _end(process)
                raise
    finally:
        _signal(process, signal.SIGKILL)  # a worker that outlived the builder


def _end(process: subprocess.Popen[str]) -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
