"""Run a command in this process: what it does is the claim, not that a program can be started."""

from __future__ import annotations

import io
import os
import signal
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import pytest

from opt_trt.cli import run_main
from opt_trt.commands import COMMANDS
from opt_trt.runtime.world import current_world


def run_command(name: str, *words: object) -> tuple[int, str]:
    """Return the exit code of a command of `COMMANDS`, and what it printed on both outputs."""
    command, said = COMMANDS[name], io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as stop:
            entry = partial(command.start, world=current_world(os.environ))
            run_main(entry, command.config_class, [*map(str, words)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return stop.value.code, said.getvalue()
