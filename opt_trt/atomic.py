"""Write a directory so that it appears only when it is whole, and an older one stays until then.

The new directory grows under a hidden name beside its target and is swapped in by one rename. The hidden directory is
locked while its writer lives, so that what a killed process left behind is told apart and removed by the next writer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

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
    names that match `owned` and nothing else. Anything else is refused with `UserError`, before the block runs. On any
    exception, Ctrl-C included, the temporary directory is removed and `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target, marker, owned)
    made_parents = _make_parents(target.parent)
    try:
        _remove_stale(target)
        temporary, lock = _locked_directory(target)
        try:
            yield temporary
            _sync_tree(temporary)
            _check_replaceable(target, marker, owned)
            _put(temporary, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after a swap this is the old directory
            os.close(lock)
    except BaseException:
        _remove_empty(made_parents)
        raise


def check_space(path: Path | str, needed: int) -> None:
    """Refuse before the work what the disk of `path` cannot take after it; `needed` in bytes."""
    parent = next(p for p in Path(os.path.realpath(path)).parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f"{path} needs {needed / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free; make room")


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
    names = sorted(entry.name for entry in target.iterdir())
    foreign = [name for name in names if name != marker and not any(fnmatch(name, pattern) for pattern in owned)]
    if names and (foreign or marker not in names or names == [marker]):
        raise UserError(
            f"{target} exists and is not an earlier output of this command "
            f"(found {', '.join((foreign or names)[:3])}); give another directory or remove it"
        )


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


def _locked_directory(target: Path) -> tuple[Path, int]:
    """A fresh directory beside the target and the descriptor that holds its lock."""
    while True:
        temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}{SUFFIX}"
        temporary.mkdir()
        lock = _try_lock(temporary)
        if lock is not None and os.fstat(lock).st_nlink:  # else another writer took it for stale just now
            return temporary, lock
        if lock is not None:
            os.close(lock)


def _remove_stale(target: Path) -> None:
    """Remove temporary directories of this target whose writers are gone."""
    prefix = f".{target.name}."
    for entry in target.parent.iterdir():
        if (
            entry.name.startswith(prefix)
            and entry.name.endswith(SUFFIX)
            and len(entry.name) == len(prefix + SUFFIX) + 8
        ):
            lock = _try_lock(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)


def _try_lock(directory: Path) -> int | None:
    """The descriptor of the locked directory, or None when a living writer holds it or it is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
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
