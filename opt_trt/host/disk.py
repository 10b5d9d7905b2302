"""Sizes on disk: refuse an output that is too large, explain a disk that fills up, and write sizes as text."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opt_trt.errors import UserError, spelled

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the user's quota is used up
MOST = 2**64  # bytes; a damaged configuration may ask for more
SECTOR = 512  # bytes of a block of `st_blocks`, on every file system


def check_space(output_dir: Path, needed: int) -> None:
    """Refuse an output of `needed` bytes if the disk under `output_dir` has fewer bytes free."""
    parent = next(p for p in Path(os.path.realpath(output_dir)).parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        size = f"{needed / 1e9:.2f} GB" if needed < MOST else "more than any disk has"
        raise UserError(f"{output_dir} needs {size}, {parent} has {free / 1e9:.2f} GB free; free some space")


@contextmanager
def explain_full_disk(directory: Path, needed: int) -> Iterator[None]:
    """Turn the error of a full disk into a `UserError` that says how many bytes of `directory` are still missing."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        lacking = max(0, needed - sum(path.stat().st_blocks * SECTOR for path in directory.iterdir()))
        raise UserError(
            f"{error.filename or directory}: {error.strerror}; {lacking / 1e9:.3f} of {needed / 1e9:.3f} GB were still "
            f"to be written: free as much in {directory.parent} or give another {spelled('output_dir')}"
        ) from error


def size_text(nbytes: int) -> str:
    """Write `7.1 MB`, in the largest unit that leaves a digit before the decimal point."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} bytes"
