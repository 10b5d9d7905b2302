"""What the process beside a rank is told."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path
from secrets import token_hex

import pytest

from opt_trt.runtime.world import watch
from opt_trt.runtime.world.guard import SHARED_MEMORY, Guard
from tests._processes import start

HERE = Path(SHARED_MEMORY)


def mapped(name: str) -> tuple[Path, mmap.mmap]:
    """A new file of shared memory, in use."""
    path = HERE / f"opt_trt_{name}_{token_hex(4)}"
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("r+b") as file:
        return path, mmap.mmap(file.fileno(), 0)


@pytest.mark.skipif(not HERE.is_dir(), reason=f"needs {HERE}")
def test_only_shared_memory_that_came_after_the_rank_joined_may_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "_pass_signals_on", lambda self: None)
    own, own_memory = mapped("model")
    guard = Guard("rank 0", 60.0)
    guard._process.kill()  # it would end this process, too
    later, later_memory = mapped("segment")
    try:
        guard.note_shared_memory()
        (length,) = watch.PATHS_LENGTH.unpack_from(guard._board, watch.BUSY_SINCE.size)
        start = watch.BUSY_SINCE.size + watch.PATHS_LENGTH.size
        assert guard._board[start : start + length].decode().split() == [str(later)]
    finally:
        guard._process.wait(10)
        own_memory.close()
        later_memory.close()
        own.unlink()
        later.unlink(missing_ok=True)


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> watch.Rank:
    """A watched process, on a clock that stands still."""
    monkeypatch.setattr(watch.time, "monotonic", lambda: 100.0)
    return watch.Rank("rank 0", 1, mmap.mmap(-1, watch.BOARD_BYTES), 60.0)


@pytest.mark.parametrize("event", [watch.FAILING, signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_was_told_to_end_or_says_why_needs_no_words(rank: watch.Rank, event: int) -> None:
    assert not rank.explains_itself()
    rank.hear(bytes([event]))
    assert rank.explains_itself()


def test_a_rank_that_outlives_an_interrupt_is_named_when_it_is_killed_later(
    rank: watch.Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank.hear(bytes([signal.SIGINT]))
    monkeypatch.setattr(watch.time, "monotonic", lambda: 100.0 + watch.STOP_SECONDS)
    assert not rank.explains_itself()


def test_a_rank_has_time_to_end_in_order_and_is_named_when_it_does_not(
    rank: watch.Rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank.hear(bytes([watch.LEAVING]))
    monkeypatch.setattr(watch.time, "monotonic", lambda: 100.0 + watch.END_SECONDS[watch.FAILING] + 1)
    assert rank.look() is None
    monkeypatch.setattr(watch.time, "monotonic", lambda: 100.0 + watch.END_SECONDS[watch.LEAVING] + 1)
    assert rank.look() == "does not end" and not rank.explains_itself()


def test_a_process_that_is_gone_before_it_is_watched_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    """The rank may be killed while the process beside it starts."""
    rank = start("sleep", 100)
    own, launcher = os.pidfd_open(rank.pid), os.pidfd_open(os.getpid())
    rank.kill()
    rank.wait()
    read_end, write_end = os.pipe()
    watch.watch(watch.Rank("rank 3", rank.pid, mmap.mmap(-1, watch.BOARD_BYTES), 60.0), own, launcher, read_end)
    assert capfd.readouterr().err.startswith("error: rank 3 was killed")
    for descriptor in (own, launcher, read_end, write_end):
        os.close(descriptor)
