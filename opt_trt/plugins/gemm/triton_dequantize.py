"""Widen a quantized weight to the activations' type, for products of many tokens, where cuBLAS is faster."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import ceil_div, depth, launcher
from opt_trt.plugins.gemm.triton_common import HALF, high_nibbles, low_nibbles, low_place

ROWS, DEPTH = 16, 128  # a tile of weights: outputs, elements of each


@triton.jit
def dequantize_kernel(
    weight: tl.tensor,
    scale: tl.tensor,
    out: tl.tensor,
    n: int,
    k: int,
    STRIDE: tl.constexpr,  # elements of `weight` in a row
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,  # divides STRIDE
) -> None:
    """Widen, in program (i, j), elements [j * DEPTH, (j + 1) * DEPTH) of rows [i * ROWS, (i + 1) * ROWS)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * DEPTH + tl.arange(0, DEPTH))[None, :]
    kept = row < n
    stored = tl.load(weight + row * STRIDE + column, mask=kept, other=0)
    step = tl.load(scale + row, mask=kept, other=0.0)
    line = out + row * k
    kind = out.dtype.element_ty
    if PACKED:
        place = low_place(column)
        tl.store(line + place, (low_nibbles(stored) * step).to(kind), mask=kept & (place < k))
        tl.store(line + place + HALF, (high_nibbles(stored) * step).to(kind), mask=kept & (place + HALF < k))
    else:
        tl.store(line + column, (stored.to(tl.float32) * step).to(kind), mask=kept & (column < k))


@triton_op("opt_trt::dequantize", mutates_args={})
def dequantize(weight: torch.Tensor, scale: torch.Tensor, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Widen a padded weight of integers with scale [N] → row-major [N, k] of `dtype`."""
    n, stride = weight.shape
    span = depth(stride, DEPTH)
    out = weight.new_empty(n, k, dtype=dtype)
    launcher(dequantize_kernel)[(ceil_div(n, ROWS), stride // span)](
        weight, scale, out, n, k, STRIDE=stride, PACKED=weight.dtype == torch.uint8, ROWS=ROWS, DEPTH=span
    )
    return out
