"""The memory that an engine takes on a GPU, computed before it is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from opt_trt.backends.tensorrt.engine_plan import EnginePlan
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.spec import packed_mode
from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import is_linear
from opt_trt.quant import ALGORITHMS, MODES
from opt_trt.quant.mode import QuantMode

CODE_PER_LAYER = 1_400_000  # bytes of a layer's kernels, of both profiles, as builds of TensorRT-RTX 1.7 have them
SCRATCH = 8 * 2**20  # bytes of every profile, however small
HEAD, VOCABULARY = "lm_head.weight", "transformer.vocab_embedding.weight"
GROUP_SCALES = 1.12  # int4 has a scale for every 128 weights, which engines hold in several forms


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on a GPU."""

    weights: int
    code: int
    slot: int  # of all caches of one sequence
    prompt: int  # activations of the longest prompt in one step
    generation: int  # activations of a step of all slots

    @property
    def fixed(self) -> int:
        """The bytes beside the caches: both phases never run at the same time."""
        return self.weights + self.code + max(self.prompt, self.generation)


def engine_memory(checkpoint: Checkpoint, plan: EnginePlan) -> EngineMemory:
    """Return what an engine of `plan` takes."""
    model, shape = plan.model, plan.shape
    row = model.local_heads * shape.capacity
    return EngineMemory(
        weights=stored_bytes(checkpoint, plan.limits.lm_head_precision),
        code=CODE_PER_LAYER * model.num_hidden_layers,
        slot=2 * model.num_hidden_layers * row * model.head_size * _itemsize(model),
        prompt=_activations(model, shape.most_tokens, row if model.dtype == "float32" else 0),
        generation=_activations(model, shape.slots, 0),
    )


def stored_bytes(checkpoint: Checkpoint, lm_head_precision: str | None) -> int:
    """Return the bytes of all weights in the engine.

    A head with the vocabulary's values is counted once; behind projections it has others.
    """
    model = checkpoint.config
    linears = filter(is_linear, checkpoint.spec)
    modes: dict[str, QuantMode | None] = dict.fromkeys(linears, ALGORITHMS.get(model.quant_algo or ""))
    modes[HEAD] = MODES[lm_head_precision] if lm_head_precision else None
    tied = not lm_head_precision and torch.equal(checkpoint.tensor(HEAD), checkpoint.tensor(VOCABULARY))
    total = 0.0
    for name, spec in checkpoint.spec.items():
        mode = modes.get(name)
        if tied and name == HEAD:
            continue
        if mode is None or (name != HEAD and packed_mode(model) is not None):
            total += spec.nbytes
        else:
            total += math.prod(spec.shape) * mode.bits / 8 * (GROUP_SCALES if mode.bits == 4 else 1)
    return round(total)


def _activations(model: ModelConfig, tokens: int, scores: int) -> int:
    """Return the bytes of a step: queries, keys, values and the widest hidden state, and attention's scores twice."""
    features = 3 * model.hidden_size + model.intermediate_size
    return SCRATCH + tokens * (features + 2 * scores) * _itemsize(model)


def _itemsize(model: ModelConfig) -> int:
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype.itemsize
