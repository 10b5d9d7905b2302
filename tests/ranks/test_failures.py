"""Whatever ends one rank ends all of them: soon, with one message that names rank and cause, and nothing is left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.ranks.conftest import StartRanks
from tests.ranks.test_sessions import PROGRAM

SECONDS_TO_END = 10
STEP_TIMEOUT = "2"

TOO_LONG = "its step has not ended within 2 s; if steps may take longer, set OPT_TRT_STEP_TIMEOUT"
FAILURES = [  # what happens, to which rank, what is said of it, exit code
    ("kill", 1, "was killed (by hand, or because memory ran out), or crashed in compiled code or in MPI", 128 + 9),
    ("stop", 0, f"is stopped: {TOO_LONG}", 128 + 9),
    ("hang", 1, f"sleeps: {TOO_LONG}", 128 + 9),
    ("crash", 1, "ZeroDivisionError: a bug", 1),
    ("fail", 0, "expected a sound decoder, found this one", 2),
    ("interrupt", 0, "a step was interrupted, and ranks cannot go on from the middle of it; start again", 2),
    ("missing", 1, "expected {directory}/rank1.engine, found nothing there", 2),
]  # fmt: skip


@pytest.mark.parametrize(("event", "rank", "message", "code"), FAILURES, ids=lambda value: str(value)[:7])
def test_a_rank_that_fails_ends_all(
    event: str, rank: int, message: str, code: int, start_ranks: StartRanks, tmp_path: Path
) -> None:
    words = (*PROGRAM, event, "--victim", rank, "--directory", tmp_path)
    run = start_ranks(2, *words, OPT_TRT_STEP_TIMEOUT=STEP_TIMEOUT)
    assert run.wait() == code
    assert len(run.errors) == 1, run.stderr
    [said] = run.errors
    assert said.startswith(f"error: rank {rank} on ") and said.endswith(message.format(directory=tmp_path))
    assert run.leftovers() == [] and "generated" not in run.output
    if (tmp_path / "event").exists():
        assert time.time() - float((tmp_path / "event").read_text()) < SECONDS_TO_END + float(STEP_TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_mpirun_ends_all_ranks(number: signal.Signals, start_ranks: StartRanks, tmp_path: Path) -> None:
    run = start_ranks(2, *PROGRAM, "wait", "--directory", tmp_path)
    for rank in range(2):
        run.wait_for(f"shared{rank}")
    since = time.monotonic()
    os.kill(run.process.pid, number)
    assert run.wait() != 0
    assert run.leftovers() == [] and time.monotonic() - since < SECONDS_TO_END


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("event", ["early-term", "early-int", pytest.param("never", marks=pytest.mark.slow)])
def test_a_signal_while_ranks_join_ends_all(event: str, victim: int, start_ranks: StartRanks, tmp_path: Path) -> None:
    run = start_ranks(2, *PROGRAM, event, "--victim", victim, "--directory", tmp_path)
    run.wait()
    assert run.leftovers() == [] and "generated" not in run.output
    assert time.time() - float((tmp_path / "event").read_text()) < 3 * SECONDS_TO_END
