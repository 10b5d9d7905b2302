"""Sessions of slots over interpreted networks, and how their answers are compared with transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import OPTForCausalLM

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.backends.tensorrt.slot_decoder import SlotDecoder
from opt_trt.backends.tensorrt.slots import slot_spec
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.request import Result
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.unit.backends.tensorrt._networks import POST_NORM, PROJECTED, interpreted, reference_logits
from tests.unit.backends.tensorrt._sum_run import DEVICE, poisoned

NORMS = {"pre-norm": {}, "post-norm": POST_NORM, "projected": PROJECTED}
# Logits have a standard deviation of 1. fp32: sums in another order. fp16 and bf16: two layers of rounded tensors.
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}
LENGTHS = (20, 1, 5, 33, 2, 7, 40)
WHOLE = {"return_context_logits": True, "return_generation_logits": True}
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


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    """Return random prompts."""
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(3, 61, (n,), generator=generator).tolist()) for n in lengths]


def assert_close(result: Result, oracle: OPTForCausalLM, tolerance: float) -> None:
    """Compare all logits; a token may differ from the largest logit's if that was no more than a tie."""
    expected = reference_logits(oracle, result.prompt_ids + result.output_ids)
    found = torch.cat((result.context_logits, result.generation_logits[1:]))
    torch.testing.assert_close(found, expected[: len(found)], atol=tolerance, rtol=0)
    rows = expected[len(result.prompt_ids) - 1 : len(found)]
    taken = rows.gather(1, torch.tensor(result.output_ids)[:, None])[:, 0]
    assert (rows.amax(1) - taken).max() <= 2 * tolerance
