"""A `Run` whose next token is the sum of a sequence's tokens, modulo the vocabulary, read back from caches of slots.

Keys are tokens and values positions, of each layer another number higher: a wrong slot, row, position, cache or
length, or a write into another sequence, gives another token; memory that was never written gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import one_hot, pad

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.backends.tensorrt.bindings import (
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    WANTED,
    WRITE_INDICES,
    Tensors,
    cache_names,
)
from opt_trt.model.config import ModelConfig
from opt_trt.runtime.session import DecoderSession
from tests.unit._engines import MODEL

DEVICE = {"type": "cuda", "library": "tensorrt_rtx", "version": "1.7.1.116", "capabilities": "8.0 8.9"}
MOST_TOKENS = 24  # of a sequence


def sum_config(max_batch_size: int = 5, max_num_tokens: int = 32, **sizes: Any) -> EngineConfig:
    """Return the `config.json` of an engine whose prompts have 16 tokens, and whose sequences have 24."""
    model = ModelConfig.from_dict(MODEL | {"max_position_embeddings": MOST_TOKENS} | sizes, "here")
    limits = Limits(max_batch_size, 16, MOST_TOKENS, max_num_tokens, MOST_TOKENS, True, True)
    return EngineConfig(model, limits, "tensorrt", DEVICE, "", {}, "checkpoint")


class SumRun:
    """`Run` of a model that has no weights."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model

    def __call__(self, profile: int, feeds: Tensors, caches: Tensors) -> Tensors:
        position = feeds[POSITION_IDS]
        sums = [
            _sums(caches[key], caches[value], feeds, layer)
            for layer, (key, value) in enumerate(_pairs(cache_names(self._model.num_hidden_layers)))
        ]
        assert sums[0].shape == position.shape == feeds[INPUT_IDS].shape
        total = (sums[0] + 3 * (sums[-1] - sums[0])).flatten()[feeds[WANTED]]
        angles = torch.stack((total.cos(), total.sin()), 1)
        logits = one_hot(total.nan_to_num().long() % self._model.vocab_size, self._model.vocab_size).float()
        return {LOGITS: logits + 0 * total[:, None], HIDDEN: pad(angles, (0, self._model.hidden_size - 2))}


def _sums(keys: torch.Tensor, values: torch.Tensor, feeds: Tensors, layer: int) -> torch.Tensor:
    """Append to the caches of a layer, and sum what each new token sees, [B, S]."""
    position = feeds[POSITION_IDS]
    for row, first in enumerate(feeds[WRITE_INDICES].tolist()):
        for cache, new in ((keys, feeds[INPUT_IDS]), (values, position)):
            room = cache[row, :, first : first + new.shape[1]]
            room[:] = (new[row, : room.shape[1], None] + layer).to(room.dtype)
    seen = torch.arange(keys.shape[2]) < position[:, :, None] + 1  # [B, S, C]
    tokens, places = ((seen * cache[:, 0, None, :, 0]).sum(-1) - layer * (position + 1) for cache in (keys, values))
    return tokens + 5 * (places - position * (position + 1) / 2)


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names[::2], names[1::2], strict=True))


def poisoned(of: DecoderSession) -> DecoderSession:
    """Fill the caches of a session with NaN."""
    for cache in of.executor.kv_cache:
        cache.fill_(torch.nan)
    return of
