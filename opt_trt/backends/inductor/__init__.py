"""The embedded backend: programs compiled by PyTorch's AOTInductor, looped by our own session."""

from __future__ import annotations

from pathlib import Path

import torch

from opt_trt.backends.inductor.decoder import open_decoder
from opt_trt.backends.inductor.isa import processor_flags
from opt_trt.checkpoint import Checkpoint
from opt_trt.config.build import BuildConfig
from opt_trt.config.runtime import check_embedded
from opt_trt.errors import UserError
from opt_trt.plugins.native import find_compiler
from opt_trt.runtime.follow import Opening
from opt_trt.runtime.ranks import Ranks
from opt_trt.runtime.session import DecoderSession, Session

OLDEST_TORCH = "2.13"

__all__ = ["build", "machine", "missing", "open"]


def machine() -> tuple[str, ...]:
    """The processor's flags and torch's version."""
    return (torch.__version__, *sorted(processor_flags()))


def missing() -> str | None:
    """None, or the torch or the compiler this backend needs to build."""
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


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> None:
    """Write an engine; see `builder.build`."""
    from opt_trt.backends.inductor import builder  # torch's compiler takes a second to import, and running needs none

    builder.build(checkpoint, config, out)


def open(opening: Opening, ranks: Ranks) -> Session:
    """A session on an engine this backend built; no compiler is needed."""
    check_embedded(opening.options)
    decoder = open_decoder(opening.engine_dir, ranks.rank, ranks.step_timeout)
    return DecoderSession(decoder, opening.limit, opening.scheduling, ranks)
