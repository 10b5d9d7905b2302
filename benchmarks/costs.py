"""The least cost of a model: the bytes that a generation step reads, and the operations of both phases."""

from __future__ import annotations

from dataclasses import dataclass

from models import Shape
from turns import Load

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int4": 4}


@dataclass(frozen=True)
class Computes:
    """The types in which a runner stores the decoder's weights, the head and the KV cache, and its activations."""

    weights: str
    head: str
    kv_cache: str
    activations: str  # a text, because they are not read from memory

    def __str__(self) -> str:
        return f"weights {self.weights}, head {self.head}, KV cache {self.kv_cache}, activations {self.activations}"


def weight_bytes(shape: Shape, computes: Computes) -> float:
    """Return the bytes of all matrices that a step reads.

    Scales, biases and norms are left out; they are less than 1 %, or 3 % with int4 groups.
    """
    return (shape.layer_weights * BITS[computes.weights] + shape.head_weights * BITS[computes.head]) / 8


def step_bytes(shape: Shape, computes: Computes, load: Load) -> float:
    """Return the bytes that a step reads at the mean length of a generation: all weights and the KV cache."""
    mean_length = load.input_len + load.output_len / 2
    kv = load.batch_size * mean_length * 2 * shape.layers * shape.hidden * BITS[computes.kv_cache] / 8
    return weight_bytes(shape, computes) + kv


def step_flops(shape: Shape, load: Load) -> float:
    """Return the operations of a generation step; a multiplication with an addition counts as two."""
    attention = 2 * shape.layers * shape.hidden * (load.input_len + load.output_len / 2)
    return 2 * load.batch_size * (shape.layer_weights + shape.head_weights + attention)


def context_flops(shape: Shape, load: Load) -> float:
    """Return the useful operations of the context phase: one row of logits per prompt, half the attention matrix."""
    attention = shape.layers * shape.hidden * load.input_len
    return 2 * load.batch_size * (load.input_len * (shape.layer_weights + attention) + shape.head_weights)
