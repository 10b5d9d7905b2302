"""Write a directory or a file so that it appears only when it is complete; an older one stays until then.

The new directory is written under a hidden name beside its target, and one rename puts it into the target's place. Its
writer holds a lock on the hidden directory. So a second writer of the same target is refused, and a hidden directory
without a lock was left behind by a killed process: the next writer removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

from opt_trt.errors import UserError
from opt_trt.host.files import is_stream
from opt_trt.host.locks import remove_unlocked, try_lock

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100  # fcntl.h
SUFFIX = ".partial"


@contextmanager
def atomic_directory(
    path: Path | str, marker: str = "config.json", owned: Sequence[str] = ("rank*",)
) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes `path` when the block ends without an exception.

    A directory that is already at `path` is replaced only if it is empty or an earlier result of the same kind: it
    holds `marker`, names that match `owned` and nothing else. A file in a folder has the name `folder/file`. Everything
    else is refused with `UserError` before the block runs, and so is a target that another process is writing. On any
    exception, including Ctrl-C, the temporary directory is removed and `path` stays as it was.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, marker, owned)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}{SUFFIX}"
    made_parents = _make_parents(target.parent)
    lock = None
    try:
        try:  # begins before anything exists, because a signal may arrive between any two lines
            lock = _make_locked(temporary, target)
            yield temporary
            _sync_tree(temporary)
            _check_replaceable(target, marker, owned)
            _put(temporary, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after a swap this is the old directory
            if lock is not None:
                os.close(lock)
    except BaseException:
        _remove_empty(made_parents)
        raise


def replace_file(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside its target, then rename it: a full disk or Ctrl-C cannot damage an older file.

    A device, a FIFO or `/dev/stdout` is written into: a file in its place would be a fault of the whole machine.
    """
    if is_stream(Path(path)):
        with open(path, "ab") as stream:
            write(cast(BinaryIO, SimpleNamespace(write=stream.write)))  # which has no position
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{SUFFIX}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path | str, text: str) -> None:
    """Replace a file by a text in UTF-8, as `replace_file` does."""
    replace_file(path, lambda file: file.write(text.encode()))


def _check_replaceable(target: Path, marker: str, owned: Sequence[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; give the name of a directory")
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        raise UserError(
            f"{target} is a mount point or the current directory, which cannot be replaced as a whole; "
            "give a directory inside it"
        )
    names = _names(target, {pattern.partition("/")[0] for pattern in owned if "/" in pattern})
    foreign = [name for name in names if name != marker and not any(fnmatch(name, pattern) for pattern in owned)]
    if names and (foreign or marker not in names or names == [marker]):
        raise UserError(
            f"{target} exists and is not an earlier output of this command "
            f"(found {', '.join((foreign or names)[:3])}); give another directory or remove it"
        )


def _names(directory: Path, folders: Set[str]) -> list[str]:
    """List a directory, and as `folder/file` the `folders` in it.

    List it again if another directory took its place meanwhile, because the old one is emptied.
    """
    while True:
        inode = directory.stat().st_ino
        found = {entry.name: entry for entry in directory.iterdir()}
        inside = {f"{name}/{path.name}" for name in folders & found.keys() for path in _entries(found[name])}
        if directory.stat().st_ino == inode:
            return sorted((found.keys() - folders) | inside)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else [folder]


def _make_parents(parent: Path) -> list[Path]:
    """Create the missing parents of the target; return the created directories, deepest first."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # another process has put something into it
            return


def _make_locked(temporary: Path, target: Path) -> int:
    """Create and lock the temporary directory; return the descriptor that holds the lock."""
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)  # one writer at a time looks for others and creates its own directory
        _remove_stale(target)
        temporary.mkdir()
        lock = try_lock(temporary)
        assert lock is not None, temporary
        return lock
    finally:
        os.close(parent)


def _remove_stale(target: Path) -> None:
    """Remove temporary directories of this target whose writers have ended; `UserError` if one still runs."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")
    for entry in filter(lambda entry: ours.fullmatch(entry.name), target.parent.iterdir()):
        if not remove_unlocked(entry):
            raise UserError(
                f"{target} is being written by another process, in {entry.name} beside it; "
                "wait for it to end or give another directory"
            )


def _sync_tree(directory: Path) -> None:
    """Force contents and names to the disk, so that a crash cannot keep a rename and lose the data."""
    for folder, _, files in os.walk(directory):
        for name in (*files, "."):
            _sync(os.path.join(folder, name))


def _sync(path: Path | str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _put(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)  # works if nothing is there, or an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(temporary, target)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories, in one step if the file system can.

    Otherwise move the old one aside and the new one into its place; move the old one back if that fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old)
    if hasattr(libc, "renameat2") and libc.renameat2(*names, RENAME_EXCHANGE) == 0:
        return
    aside = new.with_name(new.name + ".old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    os.rename(aside, new)
