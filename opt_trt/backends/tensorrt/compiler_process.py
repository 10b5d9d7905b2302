"""Start the process that compiles a rank, follow it, and end it with this process; one line says how it failed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from opt_trt.backends.tensorrt.compile_rank import Job, later_error
from opt_trt.errors import UserError, spelled
from opt_trt.host.interrupts import deferred_interrupts
from opt_trt.host.progress import Bar

COMMAND = (sys.executable, "-P", "-m", "opt_trt.backends.tensorrt.compile_rank")
TICK_SECONDS = 0.1
PIPE_BYTES = 1 << 16
ERRORS = ("ERROR", "INTERNAL_ERROR")


@dataclass
class Compiled:
    """The report of a process about the rank that it built."""

    messages: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)  # a line a layer, if asked for
    peak_bytes: int = 0  # of all its memory, mapped files included
    anonymous_bytes: int = 0  # the most that it allocated, as seen every `TICK_SECONDS`
    is_done: bool = False
    problem: Exception | None = None
    last_error: str = ""

    def take(self, event: dict[str, Any]) -> None:
        """Note an event of `compile_rank`."""
        if "log" in event:
            severity, text = event["log"]
            self.messages.append(text)
            if severity in ERRORS:
                self.last_error = later_error(self.last_error, text)
        elif "refused" in event:
            self.problem = UserError(event["refused"])
        elif "failed" in event:
            self.problem = OSError(*event["failed"])
        elif "done" in event:
            self.is_done, self.peak_bytes = True, event["done"]["peak_bytes"]
        else:
            self.network += event.get("network", [])


def run_compiler(job: Job, talks: bool) -> Compiled:
    """Build a rank in a process of its own; raise what went wrong there."""
    compiled = Compiled()
    with (
        tempfile.TemporaryFile() as words,
        _started(words) as process,
        Bar(desc=f"compiling rank {job.rank}", bar_format="{desc} {elapsed}", file=sys.stderr, leave=False,
            disable=None if talks else True) as bar,
    ):  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(job)).encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended; its exit code says why
        for line in _lines(process.stdout.fileno()):
            if line:
                _show(event := json.loads(line), job.is_verbose)
                compiled.take(event)
            compiled.anonymous_bytes = max(compiled.anonymous_bytes, _anonymous_bytes(process.pid))
            bar.refresh()
        code = process.wait()
        words.seek(0)
        said = words.read().decode(errors="replace")
    if compiled.problem is None and (code != 0 or not compiled.is_done):
        compiled.problem = _failure(code, said, compiled.last_error)
    if compiled.problem is not None:
        raise compiled.problem
    return compiled


@contextmanager
def _started(words: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process, whose own words go to a file, and kill it if the block ends before it.

    It is in a session of its own, so that a terminal's Ctrl-C reaches this process alone.
    """
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    with deferred_interrupts():
        process = subprocess.Popen(
            (*COMMAND, str(os.getpid())), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
            start_new_session=True, env=environment, bufsize=0,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()  # it owns nothing but a file in a directory that is removed
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield every line until the pipe ends, and an empty one after each `TICK_SECONDS` of silence."""
    rest = b""
    while True:
        if not select.select([descriptor], [], [], TICK_SECONDS)[0]:
            yield b""
            continue
        if not (piece := os.read(descriptor, PIPE_BYTES)):
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def _show(event: dict[str, Any], is_verbose: bool) -> None:
    severity, text = event.get("log", ("", ""))
    if text and is_verbose:
        Bar.write(f"TensorRT {severity.lower()}: {text}", file=sys.stderr)


def _anonymous_bytes(pid: int) -> int:
    """Return the memory of a process that is no mapped file; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _failure(code: int, said: str, last_error: str) -> Exception:
    """Return the error of a process that ended with `code`, after it printed `said`; a traceback is a bug of ours."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    words = last_error or (lines[-1] if lines else "it said nothing")
    if code == -signal.SIGKILL:
        return UserError(
            "the TensorRT builder was killed (SIGKILL), most likely because memory ran out; build where more is free, "
            f"see {spelled('dry_run')}"
        )
    if code < 0:
        return UserError(
            f"the TensorRT builder crashed ({signal.Signals(-code).name}): {words}; {spelled('log_level')} verbose "
            "shows its log"
        )
    if "MemoryError" in words or "bad_alloc" in words:
        return UserError(f"the TensorRT builder ran out of memory ({words}); build where more is free")
    return RuntimeError(f"the TensorRT builder ended with code {code}:\n{said}")
