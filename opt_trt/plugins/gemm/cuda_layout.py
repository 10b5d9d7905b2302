"""The layout of weights on a GPU: row-major, every row padded with zeros to whole groups of 128 values.

So kernels read weights in aligned vectors without masks. Two int4 share a byte: byte j of a group holds value j in its
low bits and value 64 + j in its high bits, each plus 8. So both halves multiply consecutive activations.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.quant.nibbles import BIAS

PADDED = "padded"
GROUP = 128  # values
HALF = GROUP // 2  # bytes of a group of int4


def pack(weight: torch.Tensor, problem: GemmProblem) -> torch.Tensor:
    """Lay out a row-major weight [N, K], of int4 held in int8."""
    return pad_and_pack_rows(weight) if problem.weight_type == "int4" else pad_rows(weight)


def packed_shape(problem: GemmProblem) -> tuple[int, int]:
    """Return the shape of `pack`'s result."""
    k = padded_length(problem.k)
    return (problem.n, k // 2 if problem.weight_type == "int4" else k)


def padded_length(k: int) -> int:
    """Return the number of values in a padded row of `k`."""
    return -(-k // GROUP) * GROUP


def pad_rows(weight: torch.Tensor) -> torch.Tensor:
    """Pad a row-major weight [N, K] → [N, padded_length(K)]."""
    return functional.pad(weight, (0, -weight.shape[1] % GROUP)).contiguous()


def pad_and_pack_rows(q: torch.Tensor) -> torch.Tensor:
    """Pad and pack row-major int4 values [N, K], held in int8 → uint8 [N, padded_length(K) / 2]."""
    biased = pad_rows(q).add(BIAS).to(torch.uint8).view(q.shape[0], -1, 2, HALF)
    low, high = biased.unbind(2)
    return torch.bitwise_or(low, high << 4).flatten(1)
