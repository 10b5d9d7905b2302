"""Open files that others wrote: only regular ones, and never more of a text than fits."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from opt_trt.errors import UserError

TEXT_LIMIT = 64 << 20  # bytes of a text file that is read as a whole
MOST_ENTRIES = 1000  # of a directory that are looked into
PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # the names of what the user's shell opened already
OPENED = (*PIPES, "/dev/stdout", "/dev/stderr")
KINDS: dict[str, Callable[[int], bool]] = {
    "a FIFO": stat.S_ISFIFO,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a socket": stat.S_ISSOCK,
    "a directory": stat.S_ISDIR,
}


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read its bytes; `UserError` names a FIFO or a device, which could make a reader wait for ever.

    A link is followed. `OSError` if nothing can be opened there.
    """
    check_regular(path)  # a socket cannot be opened at all
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  # the caller closes it
    try:
        check_kind(path, os.fstat(file.fileno()).st_mode)
        return file
    except BaseException:
        file.close()
        raise


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # does not wait for the writer of a FIFO


def check_regular(path: Path) -> None:
    """Refuse a link to nothing and what is no regular file, before a library opens it; accept a missing file."""
    if path.exists():
        check_kind(path, path.stat().st_mode)
    elif path.is_symlink():
        raise UserError(f"{path} links to a file that is missing; download it again")


def check_kind(path: Path, mode: int) -> None:
    """Refuse the mode of anything but a regular file."""
    kind = next((kind for kind, matches in KINDS.items() if matches(mode)), None)
    if kind is not None:
        raise UserError(f"{path} is {kind}, expected a regular file; give the file itself")


def is_pipe(path: Path) -> bool:
    """Return whether a path names what the user's shell opened, as `/dev/stdin` and `<(command)` do."""
    return str(path).startswith(PIPES)


def is_stream(path: Path) -> bool:
    """Return whether a path names a device, a FIFO or what the user's shell opened: these are never replaced."""
    return str(path).startswith(OPENED) or (path.exists() and not (path.is_file() or path.is_dir()))


def read_text(path: Path, encoding: str = "utf-8", limit: int = TEXT_LIMIT) -> str:
    """Return the text of a regular file or of the shell's pipe; `UserError` if it has more than `limit` bytes.

    `UnicodeDecodeError` if it is not text in this encoding.
    """
    with path.open("rb") if is_pipe(path) else open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} has more than {limit >> 20} MiB, the most that is read of a text; give a smaller file")
    return data.decode(encoding)


def nested(directory: Path, holds: Callable[[Path], bool]) -> list[Path]:
    """Return the directories within for which `holds` is true, newest numbers last, up to the depth of a hub's cache.

    A cache has `models--NAME/snapshots/HASH`, a trainer's output `checkpoint-500`.
    """
    for pattern in ("*", "snapshots/*", "*/snapshots/*"):
        folders = (path for path in islice(directory.glob(pattern), MOST_ENTRIES) if path.is_dir())
        if found := [path for path in folders if holds(path)]:
            return sorted(found, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])
    return []
