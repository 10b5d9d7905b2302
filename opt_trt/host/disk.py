"""Room on the disk: refuse before the work what it cannot take, and say what lacks when it fills up meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opt_trt.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk's end and the user's share of it
SECTOR = 512  # bytes that st_blocks counts in, whatever the file system


def check_space(output_dir: Path, needed: int) -> None:
    """Refuse an output of `needed` bytes that the disk under `output_dir` cannot take beside what is there."""
    parent = next(p for p in Path(os.path.realpath(output_dir)).parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f"{output_dir} needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; make room")


@contextmanager
def telling_what_lacks(directory: Path, needed: int) -> Iterator[None]:
    """Turn a disk that fills up while `directory` is written into a `UserError` with the bytes still to be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        lacking = max(0, needed - sum(path.stat().st_blocks * SECTOR for path in directory.iterdir()))
        raise UserError(
            f"{error.filename or directory}: {error.strerror}; {lacking / 1e9:.3f} of {needed / 1e9:.3f} GB were still "
            f"to be written: free as much in {directory.parent} or give another --output_dir"
        ) from error
