"""Change a good directory: a file by its structure or by its bytes, or put something else in its place."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz._structures import STRUCTURES, change_bytes


def mutate(directory: Path, random: Random) -> str:
    """Change one or two files of a directory; return what was done."""
    return "; ".join(_mutate_one(directory, random) for _ in range(random.choice((1, 1, 1, 2))))


def _mutate_one(directory: Path, random: Random) -> str:
    files = sorted(path for path in directory.rglob("*") if _is_small(path))
    if not files:
        return "nothing left"
    path = random.choice(files)
    change = random.choices((_by_structure, _by_bytes, _by_kind), (12, 6, 1))[0]
    return f"{path.relative_to(directory)}: {change(path, random)}"


def _is_small(path: Path) -> bool:
    """Return whether this is a regular file that was not made large by a change before."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26


def _by_structure(path: Path, random: Random) -> str:
    data = path.read_bytes()
    change = next((change for starts, change in STRUCTURES if starts(path, data)), None)
    if change is None:
        return _by_bytes(path, random)
    try:
        path.write_bytes(change(data, random))
    except Exception:  # the first of two changes left no structure
        return _by_bytes(path, random)
    return change.__name__


def _by_bytes(path: Path, random: Random) -> str:
    path.write_bytes(change_bytes(path.read_bytes(), random))
    return "bytes"


def _by_kind(path: Path, random: Random) -> str:
    """Put something else in the place of the file."""
    kind = random.choice(tuple(KINDS))
    path.unlink()
    KINDS[kind](path)
    return kind


def _sparse(path: Path, start: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(1 << 40)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has 108 characters at most
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.symlink_to("/dev/null"),
    "memory of the process": lambda path: path.symlink_to("/proc/self/mem"),
    "directory": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "broken link": lambda path: path.symlink_to("missing"),
    "empty": Path.touch,
    "sparse": _sparse,
    "sparse zip": lambda path: _sparse(path, b"PK\x03\x04"),
    "sparse list": lambda path: _sparse(path, b"[" * 1000),
    "gone": lambda path: None,
    "socket": _socket,
    "lfs pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
}
