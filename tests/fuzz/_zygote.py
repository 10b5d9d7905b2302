"""Run one input after another in forked children of a process that has imported everything already.

A request is a line of JSON, `[target, directory]`. The answer is another: exit code (negative: a signal), seconds,
peak memory in bytes. A child that takes too much of either is killed.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
import transformers

import opt_trt.backends.build
import opt_trt.backends.inductor
import opt_trt.backends.inductor.builder.builder
import opt_trt.convert.convert
import opt_trt.convert.export_hf
import opt_trt.convert.repack
import opt_trt.describe.describe
import opt_trt.evaluate.dataset
import opt_trt.plugins.tune.timing
import opt_trt.run.prompt_files
import opt_trt.run.run
import opt_trt.text.tokenizer
from tests.fuzz._targets import DEMO, TARGETS

IMPORTED = (datasets, torch, transformers, opt_trt.backends.build)
SECONDS = 20.0
MEMORY = 2 << 30
ADDRESSES = 6 << 30  # beyond those of this process
PAUSE_S = 0.005


def serve() -> None:
    """Answer requests until the input ends."""
    gc.collect()
    gc.freeze()  # else a collection in a child would copy all the pages that it shares with this process
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for line in sys.stdin:
        target, directory = json.loads(line)
        if (child := os.fork()) == 0:
            run(target, Path(directory), addresses + ADDRESSES)
        print(json.dumps(watch(child)), flush=True)


def run(target: str, directory: Path, addresses: int) -> None:
    """Run a target as a command of its own; never return."""
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdin = open(0)  # noqa: SIM115
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory / "tmp")
    code = 99
    try:
        TARGETS[target].run(directory)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 98
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(child: int) -> tuple[int, float, int]:
    """Wait for a child; kill it if it takes too long or too much memory."""
    started, peak = time.monotonic(), 0
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - started
        if pid:
            return os.waitstatus_to_exitcode(status), seconds, max(peak, usage.ru_maxrss * 1024)
        peak = max(peak, int(Path(f"/proc/{child}/statm").read_text().split()[1]) * resource.getpagesize())
        if seconds > SECONDS or peak > MEMORY:
            os.kill(child, signal.SIGKILL)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.AutoTokenizer.from_pretrained(DEMO)  # imports what it needs
    serve()
