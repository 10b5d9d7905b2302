"""Directories for the time of a process, in places where compilers can work; those of killed processes are removed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.host.locks import remove_unlocked, try_lock

PLAIN = re.compile(r"[\w./+@%=,:-]+", re.ASCII)  # paths that torch's compiler may put into a command unquoted
PREFIX = "opt_trt-scratch-"
COMMON_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def scratch_directory(preferred: Path) -> Iterator[Path]:
    """Yield an empty directory whose path has plain characters alone; it is removed afterwards.

    It lies in `preferred`, or in the first common place if the name of `preferred` has other characters. `UserError` if
    none of these can be written.
    """
    directory = _make(preferred)
    lock = try_lock(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make(preferred: Path) -> Path:
    places = [place for place in (preferred, Path(tempfile.gettempdir()), *map(Path, COMMON_PLACES)) if is_plain(place)]
    for place in places:
        try:
            for left in place.glob(f"{PREFIX}*"):
                remove_unlocked(left)
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        except OSError:  # it does not exist, or cannot be written
            continue
    raise UserError(
        f"expected a directory that can be written and has no space or quote in its path, found none among "
        f"{preferred}, {tempfile.gettempdir()} and {', '.join(COMMON_PLACES)}; set TMPDIR to one"
    )


def is_plain(place: Path) -> bool:
    """Return whether a path can stand in the command of a compiler as it is."""
    return place.is_absolute() and PLAIN.fullmatch(str(place)) is not None
