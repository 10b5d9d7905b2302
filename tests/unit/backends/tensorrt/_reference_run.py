"""A `Run` of plain torch over a real OPT: the project's graph on reference operations, with caches of slots."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from opt_trt.backends.tensorrt.bindings import (
    HIDDEN,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    WANTED,
    WRITE_INDICES,
    EngineShape,
    Tensors,
    cache_names,
)
from opt_trt.backends.tensorrt.slot_decoder import SlotDecoder
from opt_trt.backends.tensorrt.slots import SlotSpec
from opt_trt.graph.decoder import Layer
from opt_trt.ops import AttentionInputs, ReferenceOps
from tests.unit._reference_decoder import ReferenceDecoder


class Caches(NamedTuple):
    """Keys and values of a layer, each `[B, H, C, D]`."""

    keys: torch.Tensor
    values: torch.Tensor


class SlotOps(ReferenceOps):
    """Reference operations whose attention reads whole slots and masks by position alone, as the engine's does."""

    def attention(self, qkv: torch.Tensor, kv_cache: Caches, step: AttentionInputs) -> torch.Tensor:  # type: ignore[override]
        positions, writes = step.slot_mapping, step.query_start
        rows, heads, capacity, head_size = kv_cache.keys.shape
        q, k, v = qkv.view(rows, -1, 3, heads, head_size).permute(2, 0, 3, 1, 4)  # [B, H, S, D]
        for row, first in enumerate(writes.tolist()):
            for cache, new in zip(kv_cache, (k, v), strict=True):
                cache[row, :, first : first + new.shape[2]] = new[row]
        seen = torch.arange(capacity) < positions[:, None, :, None] + 1
        scores = torch.where(seen, (q * head_size**-0.5) @ kv_cache.keys.transpose(2, 3), -1e30)
        return (scores.softmax(-1) @ kv_cache.values).transpose(1, 2).reshape(qkv.shape[0], -1)


class ReferenceRun:
    """`Run` of a model in fp32."""

    def __init__(self, model_dir: Path, work: Path) -> None:
        self.reference = ReferenceDecoder(model_dir, work)
        self._layer = Layer(self.reference.config, SlotOps())

    def __call__(self, profile: int, feeds: Tensors, caches: Tensors) -> Tensors:
        reference, shape = self.reference, feeds[INPUT_IDS].shape
        ids, positions = feeds[INPUT_IDS].flatten().long(), feeds[POSITION_IDS].flatten().long()
        x = reference._embedding(ids, positions, *reference._tables)
        step = (feeds[POSITION_IDS].view(shape), feeds[WRITE_INDICES], positions, positions)
        names = cache_names(len(reference._layers))
        for number, weights in enumerate(reference._layers):
            pair = Caches(*(caches[name] for name in names[2 * number : 2 * number + 2]))
            x = self._layer(x, weights, pair, step)
        wanted = feeds[WANTED].long()
        hidden = reference._head.normed(x, wanted, reference._head_weights)
        return {LOGITS: reference._head(x, wanted, reference._head_weights), HIDDEN: hidden}


def reference_slots(model_dir: Path, work: Path, slots: int = 5, most_tokens: int = 16) -> SlotDecoder:
    """Return a decoder of slots over the model; sequences have 64 tokens at most."""
    run = ReferenceRun(model_dir, work)
    plain = run.reference.spec
    own = {
        "num_layers": 2 * plain.num_layers, "tokens_per_block": plain.max_seq_len, "max_batch_size": slots,
        "gather_context_logits": True, "gather_generation_logits": True, "draws": True,
        "shape": EngineShape(slots, plain.max_seq_len + 1, most_tokens, most_tokens),
    }  # fmt: skip
    return SlotDecoder(SlotSpec(**(vars(plain) | own)), run)
