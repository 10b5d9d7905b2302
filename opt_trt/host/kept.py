"""Keep what takes long to make: a directory of files beside their checksums, which is made again if it is damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opt_trt.errors import UserError
from opt_trt.host.atomic import atomic_directory
from opt_trt.host.locks import locked_file

CHECKSUMS = "SHA256SUMS"  # the format that `sha256sum --check` reads
PRIVATE = 0o700
OTHERS_MAY_WRITE = 0o002


def keep(root: Path, name: str, make: Callable[[Path], object]) -> list[Path]:
    """Return the files of `root/name`, after `make` has filled that directory, unless it is there and whole.

    `root` holds code that is executed, so nobody else may write there: `UserError` says how to mend that. A directory
    with a missing, changed or additional file is made again. Others that need it wait until it is made.
    """
    with _locked(root, name) as directory:
        if not is_whole(directory):
            _make(directory, make)
    return sorted(file for file in directory.iterdir() if file.name != CHECKSUMS)


def replace_kept(root: Path, name: str, make: Callable[[Path], object]) -> None:
    """Make the directory `root/name` anew, as `keep` does if it is damaged."""
    with _locked(root, name) as directory:
        _make(directory, make)


def copy_files(source: Path, target: Path) -> None:
    """Put the files of a directory into another one, as further names of the same files where that is possible."""
    for file in source.iterdir():
        if file.is_file() and file.name != CHECKSUMS:
            try:
                os.link(file, target / file.name)
            except OSError:  # another file system
                shutil.copy2(file, target)


@contextmanager
def _locked(root: Path, name: str) -> Iterator[Path]:
    directory = trusted(root) / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(directory.with_name(f".{directory.name}.lock")):
        yield directory


def _make(directory: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    with atomic_directory(directory, marker=CHECKSUMS, owned=("*",)) as temporary:
        make(temporary)
        (temporary / CHECKSUMS).write_text(_lines(temporary))


def is_whole(directory: Path) -> bool:
    """Return whether a directory has the files that its checksums name, as they were written, and no others."""
    try:
        return (directory / CHECKSUMS).read_text() == _lines(directory)
    except (OSError, ValueError):
        return False


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def trusted(root: Path) -> Path:
    """Return a directory from which code may be loaded; make it for this user alone if it is missing.

    `UserError` if it is another user's, or if every user may write there. The system's administrator is trusted.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    root.mkdir(mode=PRIVATE, exist_ok=True)
    status, user = root.stat(), os.geteuid()
    if status.st_uid not in (user, 0):
        raise UserError(
            f"{root} holds compiled code and belongs to user {status.st_uid}, this is user {user}; set XDG_CACHE_HOME "
            "to a directory of your own"
        )
    if status.st_mode & OTHERS_MAY_WRITE:
        raise UserError(
            f"{root} holds compiled code, and every user may write there; delete it, or look through it and run "
            f"chmod 700 {root}"
        )
    return root


def _lines(directory: Path) -> str:
    files = sorted(file for file in directory.iterdir() if file.name != CHECKSUMS)
    return "".join(f"{checksum(file)}  {file.name}\n" for file in files)
