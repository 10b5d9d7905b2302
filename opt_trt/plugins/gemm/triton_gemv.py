"""Matrix products of one to eight tokens: each weight is read once and multiplied for all tokens, sums in fp32.

A program owns whole rows of the weight, so a token's sums are taken in one order, whatever tokens come with it. A
thread reads eight weights at a time and the eight activations that they multiply, which lie in the same layout. So
nothing passes through shared memory until the sums are complete.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import ceil_div, depth, launcher
from opt_trt.plugins.gemm.triton_common import HALF, activations, finished, high_nibbles, low_nibbles, low_place

WARPS = 4
VECTOR = 8  # stored elements that a thread reads at a time
TILE = WARPS * 32 * VECTOR  # elements that all threads read at a time
DEPTH = 256  # elements of one row among them, if the row's length allows


@triton.jit
def gemv_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    tokens: int,
    n: int,
    K: tl.constexpr,
    STRIDE: tl.constexpr,  # elements of `weight` in a row
    PACKED: tl.constexpr,
    RELU: tl.constexpr,
    TOKENS: tl.constexpr,
    TURNS: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,  # divides STRIDE
    VECTOR: tl.constexpr,
) -> None:
    """Compute, in program i, outputs [i * TURNS * LANES, (i + 1) * TURNS * LANES) of all tokens, LANES at a time."""
    first = tl.program_id(0) * TURNS * LANES
    lane = tl.arange(0, LANES)[:, None]
    totals = ()  # an annotation would not compile
    for _ in tl.static_range(TURNS * TOKENS):
        totals += (tl.zeros([LANES, DEPTH], tl.float32),)  # type: ignore[assignment]
    for start in tl.range(0, STRIDE, DEPTH, loop_unroll_factor=2):
        # The same in every lane, so that activations have the layout of weights.
        column = tl.broadcast_to(start + tl.arange(0, DEPTH)[None, :], [LANES, DEPTH])
        added = ()
        for turn in tl.static_range(TURNS):
            row = tl.minimum(first + turn * LANES + lane, n - 1)  # rows beyond n are read, but never written
            stored = tl.load(weight + row.to(tl.int64) * STRIDE + tl.max_contiguous(column, [1, VECTOR]))
            for token in tl.static_range(TOKENS):
                total = totals[turn * TOKENS + token]  # type: ignore[var-annotated]
                if PACKED:
                    place = low_place(column)
                    total += low_nibbles(stored) * activations(x, token, place, tokens, K).to(tl.float32)
                    total += high_nibbles(stored) * activations(x, token, place + HALF, tokens, K).to(tl.float32)
                else:
                    total += stored.to(tl.float32) * activations(x, token, column, tokens, K).to(tl.float32)
                added += (total,)  # type: ignore[assignment]
        totals = added
    for turn in tl.static_range(TURNS):
        row = first + turn * LANES + tl.arange(0, LANES)
        for token in tl.static_range(TOKENS):
            kept = (row < n) & (token < tokens)
            y = finished(tl.sum(totals[turn * TOKENS + token], 1), scale, bias, residual, row, token, n, kept, RELU)
            tl.store(out + token * n + row, y.to(out.dtype.element_ty), mask=kept)


@triton_op("opt_trt::gemv", mutates_args={})
def gemv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    n: int,
    relu: bool,
    out_dtype: torch.dtype,
    most_tokens: int,
    turns: int,
) -> torch.Tensor:
    """Compute `act(x [T, K] @ weight.T * scale + bias) + residual` → [T, n], for `T <= most_tokens`.

    The weight is padded. A thread multiplies `turns` of its rows with the same activations.
    """
    tokens, k = x.shape
    stride = weight.shape[1]
    span = depth(stride, DEPTH)
    lanes = TILE // span
    out = x.new_empty(tokens, n, dtype=out_dtype)
    launcher(gemv_kernel)[(ceil_div(n, turns * lanes),)](
        x, weight, scale, bias, residual, out, tokens, n,
        K=k, STRIDE=stride, PACKED=weight.dtype == torch.uint8, RELU=relu,
        TOKENS=most_tokens, TURNS=turns, LANES=lanes, DEPTH=span, VECTOR=VECTOR, num_warps=WARPS,
    )  # fmt: skip
    return out
