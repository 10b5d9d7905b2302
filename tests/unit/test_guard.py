"""What the process beside a rank is told."""

from __future__ import annotations

import mmap
from pathlib import Path
from secrets import token_hex

import pytest

from opt_trt.runtime.world import watch
from opt_trt.runtime.world.guard import SHARED_MEMORY, Guard

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
