"""Locks on files and directories: they end with the process that holds them, whatever ends it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing. Other threads and processes wait for it meanwhile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(directory: Path) -> int | None:
    """Lock a directory and return the descriptor that holds the lock, or None if another holder still runs."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def remove_unlocked(directory: Path) -> bool:
    """Remove a directory whose holder has ended; return False if the holder still runs."""
    try:
        lock = try_lock(directory)
    except OSError:  # its holder has just removed it, or it is another user's
        return True
    if lock is None:
        return False
    with suppress(OSError):
        shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)
    return True
