"""Sessions of slots over interpreted networks."""

from __future__ import annotations

from typing import Any

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.backends.tensorrt.slot_decoder import SlotDecoder
from opt_trt.backends.tensorrt.slots import slot_spec
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit.backends.tensorrt._networks import interpreted
from tests.unit.backends.tensorrt._sum_run import DEVICE, poisoned

LIMITS = Limits(5, 50, 60, 64, 60, True, True)


def interpreted_decoder(checkpoint: Checkpoint, limits: Limits = LIMITS, **options: Any) -> SlotDecoder:
    """Return the decoder of a checkpoint's network, of 5 slots of 60 tokens."""
    config = EngineConfig(checkpoint.config, limits, "tensorrt", DEVICE, "", {}, "")
    spec = slot_spec(config, "cpu")
    return SlotDecoder(spec, interpreted(checkpoint, spec.shape, **options))


def slot_session(
    decoder: SlotDecoder, max_tokens: int | None = None, scheduling: Scheduling | None = None
) -> DecoderSession:
    """Return a session over caches of NaN."""
    return poisoned(DecoderSession(decoder, KvCacheLimit(max_tokens), scheduling))
