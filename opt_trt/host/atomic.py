"""Write a directory or a file so that it appears only when it is whole, and an older one stays until then.

The new directory grows under a hidden name beside its target and is swapped in by one rename. The hidden directory is
locked while its writer lives: a second writer of the same target is refused, and what a killed process left behind is
told apart and removed by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from opt_trt.errors import UserError

RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100  # fcntl.h
SUFFIX = ".partial"


@contextmanager
def atomic_directory(
    path: Path | str, marker: str = "config.json", owned: Sequence[str] = ("rank*",)
) -> Iterator[Path]:
    """Yield an empty temporary directory that becomes `path` when the block ends without an exception.

    What is at `path` already is replaced only if it is empty or an earlier result of the same kind: it holds `marker`,
    names that match `owned` and nothing else. Anything else is refused with `UserError`, before the block runs, and so
    is a target that another process is writing. On any exception, Ctrl-C included, the temporary directory is removed
    and `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, marker, owned)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}{SUFFIX}"
    made_parents = _make_parents(target.parent)
    lock = None
    try:
        try:  # from before there is anything: a signal may come between any two lines
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
    """`write` a file beside its target and rename it, so that a full disk or Ctrl-C leaves an older one as it was."""
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
    """`replace_file` with a text, in UTF-8."""
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
    names = _names(target)
    foreign = [name for name in names if name != marker and not any(fnmatch(name, pattern) for pattern in owned)]
    if names and (foreign or marker not in names or names == [marker]):
        raise UserError(
            f"{target} exists and is not an earlier output of this command "
            f"(found {', '.join((foreign or names)[:3])}); give another directory or remove it"
        )


def _names(directory: Path) -> list[str]:
    """What is in a directory; looked up again if another one took its place meanwhile, for the old one is emptied."""
    while True:
        inode = directory.stat().st_ino
        names = sorted(entry.name for entry in directory.iterdir())
        if directory.stat().st_ino == inode:
            return names


def _make_parents(parent: Path) -> list[Path]:
    """Create what is missing above the target; the directories made, deepest first."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        try:
            directory.rmdir()
        except OSError:  # someone else uses it by now
            return


def _make_locked(temporary: Path, target: Path) -> int:
    """Make the directory beside the target that no other writer has; the descriptor that holds its lock."""
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)  # one writer at a time looks for others and makes its own
        _remove_stale(target)
        temporary.mkdir()
        lock = _try_lock(temporary)
        assert lock is not None, temporary
        return lock
    finally:
        os.close(parent)


def _remove_stale(target: Path) -> None:
    """Remove temporary directories of this target whose writers are gone; `UserError` if one lives."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}{re.escape(SUFFIX)}")
    for entry in filter(lambda entry: ours.fullmatch(entry.name), target.parent.iterdir()):
        try:
            lock = _try_lock(entry)
        except FileNotFoundError:  # its writer has just ended
            continue
        if lock is None:
            raise UserError(
                f"{target} is being written by another process, in {entry.name} beside it; "
                "wait for it to end or give another directory"
            )
        shutil.rmtree(entry, ignore_errors=True)
        os.close(lock)


def _try_lock(directory: Path) -> int | None:
    """The descriptor of the locked directory, or None when a living writer holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_tree(directory: Path) -> None:
    """Force contents and names to the disk, so that a rename cannot outlive its data in a crash."""
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
        os.rename(temporary, target)  # nothing there, or an empty directory
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(temporary, target)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories: in one step where the file system can, else old aside, new in, old back on failure."""
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
