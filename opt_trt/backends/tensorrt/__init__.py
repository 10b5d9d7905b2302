"""TensorRT engines, built with the library's own network API, where there is a GPU and where there is none."""

from __future__ import annotations

from pathlib import Path

from opt_trt.backends.tensorrt import library
from opt_trt.backends.tensorrt.library import missing
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.session import Session

__all__ = ["build", "machine", "missing", "open"]


def machine() -> tuple[str, ...]:
    """Return the library and the GPU; nothing where no GPU is seen, or one that the library has no engines for."""
    gpu = visible_gpu()
    if gpu is None or missing() is not None:
        return ()
    found = library.load_library()
    sm = gpu.capability.replace(".", "")
    if library.chooses_gpus(found) and not hasattr(found.ComputeCapability, f"SM{sm}"):
        return ()
    return library.version(found), str(gpu)


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
    """Write an engine; see `build_engine.build`."""
    from opt_trt.backends.tensorrt import build_engine  # running needs none of it

    return build_engine.build(checkpoint, config, out)


def open(opening: Opening, ranks: Ranks) -> Session:
    """Open a session on an engine that this backend built; see `open_session.open_session`."""
    from opt_trt.backends.tensorrt.open_session import open_session  # building needs none of it

    return open_session(opening, ranks)
