"""The command `cache`: what is kept between runs, how large it is, and how to get rid of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from opt_trt.config.cache_flags import CacheConfig
from opt_trt.describe.table import aligned
from opt_trt.host.cache import cache_dir
from opt_trt.host.disk import size_text

LOCK = ".lock"  # an engine that is being made or looked up has a locked file of its name


def cache(config: CacheConfig) -> None:
    """Do what `config` asks for."""
    directory = cache_dir()
    entries = [entry for kind in config.only for entry in _entries(directory / kind)]
    if config.action == "clear":
        _clear(entries, directory, config.talks)
    elif config.action == "size":
        print(f"{size_text(sum(map(_nbytes, entries)))} in {directory}")
    else:
        print("\n".join(_listing(directory, entries)))


def _entries(path: Path) -> list[Path]:
    """Return the file itself, or the entries of a directory, without the locks of engines."""
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.suffix != LOCK)
    return [path] if path.is_file() else []


def _listing(directory: Path, entries: Sequence[Path]) -> list[str]:
    rows = [(str(e.relative_to(directory)), _made(e), _about(e), size_text(_nbytes(e))) for e in entries]
    head = f"{directory}: {size_text(sum(map(_nbytes, entries)))} (XDG_CACHE_HOME names another place)"
    return [head, "", *aligned(("entry", "made", "what", "size"), rows, left=3)] if rows else [head]


def _made(entry: Path) -> str:
    return datetime.fromtimestamp(entry.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _about(entry: Path) -> str:
    """Return what an engine is made of; nothing for other entries."""
    try:
        model = json.loads((entry / "config.json").read_text(encoding="utf-8"))["pretrained_config"]
        algorithm = model["quantization"]["quant_algo"]
        return f"{model['num_hidden_layers']} layers of {model['hidden_size']}, {algorithm or model['dtype']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _nbytes(entry: Path) -> int:
    files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
    return sum(path.stat().st_size for path in files)


def _clear(entries: Sequence[Path], directory: Path, talks: bool) -> None:
    freed = 0
    for entry in entries:
        nbytes = _nbytes(entry)
        with _unlocked(entry) as is_free:
            if is_free:
                _remove(entry)
                freed += nbytes
            else:
                print(f"{entry} is in use and stays; clear it when that process has ended")
    if talks:
        print(f"freed {size_text(freed)} in {directory}")


@contextmanager
def _unlocked(entry: Path) -> Iterator[bool]:
    """Yield whether no other process makes this entry; hold its lock meanwhile."""
    lock = entry.with_suffix(LOCK)
    if not lock.is_file():
        yield True
        return
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _remove(entry: Path) -> None:
    """Remove an entry under a hidden name, so that no other process opens half of it."""
    hidden = entry.with_name(f".{entry.name}.{os.getpid()}")
    entry.rename(hidden)
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()
