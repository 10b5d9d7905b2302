"""The sizes of an engine, from its model and its limits: `build` gives them to the network, a session to its caches."""

from __future__ import annotations

import math

import torch

from opt_trt.backends.engine import Limits
from opt_trt.backends.tensorrt.bindings import EngineShape
from opt_trt.model.config import ModelConfig

ALIGNMENT = 256  # bytes: TensorRT takes no cache at another address, and slots lie behind one another
LARGEST = 2**31 - 1  # elements of a cache; nothing says that kernels count further
MOST_FP32_TOKENS = 512  # attention of fp32 prompts is not fused: its scores lie in memory


def capacity_of(model: ModelConfig, max_seq_len: int) -> int:
    """Return the tokens that a cache has room for: the longest sequence, a row that idle rows write to, and padding."""
    row = model.local_heads * model.head_size * getattr(torch, model.dtype).itemsize
    step = ALIGNMENT // math.gcd(ALIGNMENT, row)
    return -(-(max_seq_len + 1) // step) * step


def most_slots(model: ModelConfig, max_seq_len: int) -> int:
    """Return the most sequences whose keys of one layer can be addressed."""
    return LARGEST // (model.local_heads * model.head_size * capacity_of(model, max_seq_len))


def engine_shape(model: ModelConfig, limits: Limits, usual_tokens: int | None = None) -> EngineShape:
    """Return the sizes of an engine; `usual_tokens` of a prompt is half of the longest one unless given."""
    most = limits.max_input_len if model.dtype != "float32" else min(limits.max_input_len, MOST_FP32_TOKENS)
    return EngineShape(
        slots=limits.max_batch_size,
        capacity=capacity_of(model, limits.max_seq_len),
        most_tokens=most,
        usual_tokens=usual_tokens or -(-most // 2),
    )
