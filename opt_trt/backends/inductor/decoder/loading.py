"""Load compiled programs and run them."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch._C._aoti import AOTIModelPackageLoader

from opt_trt.errors import UserError


class Program:
    """One program of a package, by name."""

    def __init__(self, package: Path, name: str) -> None:
        stat = package.stat()
        self._loader = _load(str(package.resolve()), name, stat.st_mtime_ns, stat.st_ino)

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The program's one output; inputs in the order its module takes them, flattened. Empties `inputs`."""
        return self._loader.boxed_run(inputs)[0]


@functools.cache
def _load(package: str, name: str, mtime_ns: int, inode: int) -> AOTIModelPackageLoader:
    """A loader, kept for the life of the process: every load and unload leaks memory mappings."""
    # Compiled code reads this once, at its first call: a wrong type or order then is an error, not a corrupted heap.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    before = _unpacked()
    try:
        # Not aoti_load_package: it probes the compiler for seconds to print a warning.
        return AOTIModelPackageLoader(package, name, True, 1, -1)
    except RuntimeError as error:
        for leftover in _unpacked() - before:  # the loader unpacks there and does not clean up after itself
            shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        raise UserError(
            f"{package} cannot be loaded ({str(error).splitlines()[0]}); it unpacks to {tempfile.gettempdir()}, "
            f"which has {free / 2**20:.0f} MiB free: free space there, or build the engine again"
        ) from error


def _unpacked() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("aotinductor_*"))


def load_programs(package: Path, names: Sequence[str]) -> list[Program]:
    """The programs of a package in the order of `names`."""
    return [Program(package, name) for name in names]
