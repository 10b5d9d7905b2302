"""Open an engine's file on a GPU: is it one, is it for this library, this GPU and this driver?"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opt_trt.backends.tensorrt.library import Library, version
from opt_trt.errors import UserError, spelled

REBUILD = "build it again: python build.py --backend tensorrt --checkpoint_dir CHECKPOINT --output_dir {engine}"
HEADER_BYTES = 4096  # more than the library asks for
# What the library finds wrong with an engine, by the names of its own bits, in the order in which it helps to know.
PROBLEMS = {
    "MALFORMED_ENGINE": "is damaged or no engine; copy all files of the engine again, or {rebuild}",
    "VERSION_MISMATCH": "was built by another release than {library}; install the release that built it, or {rebuild}",
    "UNSUPPORTED_CC": "has no kernels for the GPU that is here, or {library} has none; run it on another GPU, or give "
    f"the GPU's compute capability to {spelled('target_sm')} and {{rebuild}}",
    "OLD_CUDA_DRIVER": "needs a newer driver than the one that is here; update it (CUDA 13 needs 580 or newer)",
    "OLD_CUDA_RUNTIME": "needs a newer CUDA runtime than {library} finds here; update that package",
    "INSUFFICIENT_GPU_MEMORY": "does not fit the memory that the GPU has left; end other programs on this GPU, or "
    f"convert with {spelled('use_weight_only')} and {{rebuild}}",
    "CUDA_ERROR": "could not be examined by {library}, because CUDA reported an error; see whether nvidia-smi works",
}


class LastError:
    """The last error that the library reported; its functions return None or False and say no more."""

    def __init__(self) -> None:
        self.text = "the library gave no reason"


def create_runtime(library: Library, said: LastError) -> Any:
    """Return the library's runtime, which tells `said` its errors."""
    return library.Runtime(_logger(library, said))


def deserialize(library: Library, runtime: Any, said: LastError, path: Path) -> Any:
    """Return the engine in a file, which is mapped: its weights go to the GPU without a copy in the host's memory.

    `UserError` says in one line why the engine cannot run here.
    """
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"expected an engine in {path}, found nothing there; {_rebuild(path)}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        check_validity(library, runtime, content[:HEADER_BYTES], path)
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise UserError(f"{path} could not be opened with {version(library)}: {said.text}; {_rebuild(path)}")
    return engine


def check_validity(library: Library, runtime: Any, header: bytes, path: Path) -> None:
    """Refuse an engine that the library says cannot run here. A library that cannot say so finds out later."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(header)
    if validity == library.EngineValidity.SUBOPTIMAL:
        print(
            f"{path}: it will run, but was built for another GPU: {', '.join(_names(library, bits))}", file=sys.stderr
        )
    if validity != library.EngineValidity.INVALID:
        return
    name = next(iter(_names(library, bits)), "CUDA_ERROR")
    raise UserError(f"{path} {PROBLEMS[name].format(library=version(library), rebuild=_rebuild(path))} ({name})")


def _names(library: Library, bits: int) -> Sequence[str]:
    """Return the names of the bits that are set, the most helpful first."""
    return [name for name in PROBLEMS if bits & int(getattr(library.EngineInvalidityDiagnostics, name, 0))]


def _rebuild(path: Path) -> str:
    return REBUILD.format(engine=path.parent)


def _logger(library: Library, said: LastError) -> Any:
    """Return a logger that keeps the last error; its class needs the library's own as base."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(library.ILogger.Severity.ERROR):
                said.text = message.splitlines()[0]

    return Logger()
