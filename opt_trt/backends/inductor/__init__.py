"""The embedded backend: programs compiled by PyTorch's AOTInductor, looped by our own session."""

from __future__ import annotations

import os
from pathlib import Path

from opt_trt.backends.engine import read_engine_config
from opt_trt.backends.inductor.build import build
from opt_trt.backends.inductor.decoder import open_decoder
from opt_trt.config.scheduling import Scheduling
from opt_trt.errors import UserError
from opt_trt.plugins.native import find_compiler
from opt_trt.runtime.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession, Session
from opt_trt.runtime.world import current_world

__all__ = ["build", "missing", "open"]


def missing() -> str | None:
    """None, or the compiler this backend needs to build."""
    try:
        find_compiler()
    except UserError as error:
        return str(error)
    return None


def open(engine_dir: Path, limit: KvCacheLimit, scheduling: Scheduling) -> Session:
    """A session on an engine this backend built; no compiler is needed."""
    current_world(os.environ).require(read_engine_config(engine_dir).pretrained_config.mapping.world_size)
    return DecoderSession(open_decoder(engine_dir), limit, scheduling)
