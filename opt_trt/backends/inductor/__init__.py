"""The embedded backend: PyTorch's AOTInductor compiles programs, and the session of `runtime` runs them in a loop."""

from __future__ import annotations

from pathlib import Path

import torch

from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.backends.inductor.decoder.cuda import open_cuda_decoder
from opt_trt.backends.inductor.decoder.cuda_ranks import open_cuda_rank
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.runtime_flags import check_embedded
from opt_trt.errors import UserError
from opt_trt.plugins.cpu.isa import processor_flags
from opt_trt.plugins.cuda.gpu import visible_gpu
from opt_trt.plugins.native.library import find_compiler
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.session import DecoderSession, Session
from opt_trt.step import Decoder

OLDEST_TORCH = "2.13"

__all__ = ["build", "machine", "missing", "open"]


def machine() -> tuple[str, ...]:
    """Describe the machine: torch's version, the GPU if there is one, and the processor's flags."""
    return (torch.__version__, str(visible_gpu()), *sorted(processor_flags()))


def missing() -> str | None:
    """Say which torch or compiler is missing to build; None if nothing is."""
    if torch.__version__ < OLDEST_TORCH:
        return (
            f"it compiles with torch {OLDEST_TORCH} or newer, found {torch.__version__}; install the versions of "
            "requirements.txt into an environment of its own"
        )
    try:
        find_compiler()
    except UserError as error:
        return str(error)
    return None


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
    """Write an engine; see `builder.build`."""
    from opt_trt.backends.inductor.builder import (
        builder,  # torch's compiler takes a second to import, and running needs none
    )

    return builder.build(checkpoint, config, out)


def open(opening: Opening, ranks: Ranks) -> Session:
    """Open a session on an engine that this backend built; no compiler is needed."""
    config = read_engine_config(opening.engine_dir)
    device = config.device.get("type", "cpu")
    check_embedded(opening.options, device)
    if device == "cuda" and config.pretrained_config.mapping.world_size > 1:
        decoder: Decoder = open_cuda_rank(opening.engine_dir, config, opening.options, ranks.step_timeout)
    elif device == "cuda":
        decoder = open_cuda_decoder(opening.engine_dir, config, opening.options)
    else:
        decoder = open_decoder(opening.engine_dir, ranks.rank, ranks.step_timeout)
    return DecoderSession(decoder, opening.limit, opening.scheduling, ranks)
