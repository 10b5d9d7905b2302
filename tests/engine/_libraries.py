"""The plugin library of an instruction set, compiled once for all workers of a test run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opt_trt.host.cache import cache_dir
from opt_trt.plugins.cpu.isa import Isa, target_isa
from opt_trt.plugins.native.library import NativeLibrary, compile_library


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other workers waiting that lock the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def plugin_library(isa: Isa | None = None) -> NativeLibrary:
    """Return the library for an instruction set, by default the one that builds without `--target_isa` use."""
    isa, directory = isa or target_isa(), cache_dir() / "plugins"
    with locked(cache_dir() / f"plugins-{isa.name}"):
        return compile_library(isa.march, directory)
