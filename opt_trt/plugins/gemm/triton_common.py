"""The common parts of the kernels of matrix products: they unpack weights, and finish the sum."""

from __future__ import annotations

import triton
import triton.language as tl

from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.quant import nibbles

GROUP = tl.constexpr(padded.GROUP)
HALF = tl.constexpr(padded.HALF)
BIAS = tl.constexpr(nibbles.BIAS)


@triton.jit
def low_nibbles(stored: tl.tensor) -> tl.tensor:
    """Return the earlier int4 of each byte as fp32."""
    return (stored & 15).to(tl.float32) - BIAS


@triton.jit
def high_nibbles(stored: tl.tensor) -> tl.tensor:
    """Return the later int4 of each byte as fp32."""
    return (stored >> 4).to(tl.float32) - BIAS


@triton.jit
def low_place(column: tl.tensor) -> tl.tensor:
    """Return the place in K of the earlier int4 of a byte; that of the later one is HALF more."""
    return column // HALF * GROUP + column % HALF


@triton.jit
def activations(x: tl.tensor, token: tl.tensor, place: tl.tensor, tokens: tl.tensor, K: tl.constexpr) -> tl.tensor:
    """Load `x[token, place]`, zero beyond either end; `token` and `place` broadcast to the shape of the result."""
    return tl.load(x + token * K + place, mask=(token < tokens) & (place < K), other=0.0)


@triton.jit
def finished(
    total: tl.tensor,  # fp32 sums
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    row: tl.tensor,  # with `token`, broadcasts to the shape of `total`
    token: tl.tensor,
    n: tl.tensor,
    kept: tl.tensor,
    RELU: tl.constexpr,
) -> tl.tensor:
    """Compute `act(total * scale + bias) + residual`; operands that are None are left out."""
    if scale is not None:
        total *= tl.load(scale + row, mask=row < n, other=0.0)
    if bias is not None:
        total += tl.load(bias + row, mask=row < n, other=0.0)
    if RELU:
        total = tl.maximum(total, 0.0)
    if residual is not None:
        total += tl.load(residual + token * n + row, mask=kept, other=0.0).to(tl.float32)
    return total
