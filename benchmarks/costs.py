"""What a model costs at least: bytes read by a step of the generation phase, operations of both phases."""

from __future__ import annotations

from dataclasses import dataclass

from models import Shape
from turns import Load

BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int4": 4}


@dataclass(frozen=True)
class Computes:
    """What a runner stores and multiplies in: types of the decoder's weights, the head's, and the KV cache's."""

    weights: str
    head: str
    kv_cache: str
    activations: str  # in words: they are not streamed from memory

    def __str__(self) -> str:
        return f"weights {self.weights}, head {self.head}, KV cache {self.kv_cache}, activations {self.activations}"


def weight_bytes(shape: Shape, computes: Computes) -> float:
    """Bytes of all matrices a step reads; scales, biases and norms are left out (under 1 %, int4 groups 3 %)."""
    return (shape.layer_weights * BITS[computes.weights] + shape.head_weights * BITS[computes.head]) / 8


def step_bytes(shape: Shape, computes: Computes, load: Load) -> float:
    """Bytes a step reads at the mean length of the generation: the weights once, the KV cache of each row."""
    mean_length = load.input_len + load.output_len / 2
    kv = load.batch_size * mean_length * 2 * shape.layers * shape.hidden * BITS[computes.kv_cache] / 8
    return weight_bytes(shape, computes) + kv


def step_flops(shape: Shape, load: Load) -> float:
    """Operations of a step of the generation phase, two for a multiply and an add."""
    attention = 2 * shape.layers * shape.hidden * (load.input_len + load.output_len / 2)
    return 2 * load.batch_size * (shape.layer_weights + shape.head_weights + attention)


def context_flops(shape: Shape, load: Load) -> float:
    """Useful operations of the context phase: one head row a prompt, half the attention matrix."""
    attention = shape.layers * shape.hidden * load.input_len
    return 2 * load.batch_size * (load.input_len * (shape.layer_weights + attention) + shape.head_weights)
