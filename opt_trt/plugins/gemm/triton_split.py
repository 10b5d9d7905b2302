"""Matrix products of up to 64 tokens on tensor cores; each of several programs sums a part of K.

Weights are the left operand: a tile of outputs fills a tensor core's rows however few tokens there are. Tiles of 64
outputs use Hopper's instructions for groups of warps; tiles of 32 use instructions of single warps on every GPU. The
parts of a sum are written to memory in fp32 and added in order by a second kernel, so equal steps give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import ceil_div, depth, launcher
from opt_trt.plugins.gemm.triton_common import HALF, activations, finished, high_nibbles, low_nibbles, low_place

DEPTH, WARPS = 128, 4  # elements of an output's weights in a tile
STAGES = {16: 4, 32: 4, 64: 3}  # tiles in flight, by tokens of a program: as many as shared memory holds
SUM_BLOCK = 512  # outputs of a program of the second kernel


@triton.jit
def split_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,  # [T, n], or with several parts fp32 [SPLITS, T, n]
    tokens: int,
    n: int,
    K: tl.constexpr,
    STRIDE: tl.constexpr,  # elements of `weight` in a row
    PACKED: tl.constexpr,
    RELU: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,  # divides STRIDE
) -> None:
    """Sum, in program (i, j, s), part s of K for ROWS outputs from i * ROWS on and TOKENS tokens from j * TOKENS on."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[None, :]
    split = tl.program_id(2)
    lines = weight + tl.minimum(row, n - 1).to(tl.int64) * STRIDE  # rows beyond n are read, but never written
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    steps: tl.constexpr = (STRIDE // DEPTH + SPLITS - 1) // SPLITS
    for step in range(split * steps, tl.minimum((split + 1) * steps, STRIDE // DEPTH)):
        column = step * DEPTH + tl.arange(0, DEPTH)
        stored = tl.load(lines + column[None, :])
        if PACKED:
            place = low_place(column)[:, None]
            low, high = low_nibbles(stored).to(x.dtype.element_ty), high_nibbles(stored).to(x.dtype.element_ty)
            total = tl.dot(low, activations(x, token, place, tokens, K), total)
            total = tl.dot(high, activations(x, token, place + HALF, tokens, K), total)
        else:
            widened = stored.to(tl.float32).to(x.dtype.element_ty)
            total = tl.dot(widened, activations(x, token, column[:, None], tokens, K), total)
    kept = (row < n) & (token < tokens)
    if SPLITS == 1:
        total = finished(total, scale, bias, residual, row, token, n, kept, RELU)
    place = (split * tokens + token).to(tl.int64) * n + row
    tl.store(out + place, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def sum_kernel(
    parts: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    tokens: int,
    n: int,
    RELU: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add, in program (i, t), the parts of outputs [i * BLOCK, (i + 1) * BLOCK) of token t, in order."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.program_id(1)
    kept = row < n
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts + (split * tokens + token).to(tl.int64) * n + row, mask=kept, other=0.0)
    total = finished(total, scale, bias, residual, row, token, n, kept, RELU)
    tl.store(out + token.to(tl.int64) * n + row, total.to(out.dtype.element_ty), mask=kept)


@triton_op("opt_trt::split_gemm", mutates_args={})
def split_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    n: int,
    relu: bool,
    out_dtype: torch.dtype,
    most_tokens: int,
    splits: int,
    rows: int,
) -> torch.Tensor:
    """Compute `act(x [T, K] @ weight.T * scale + bias) + residual` → [T, n]; the weight is padded.

    A program computes `rows` outputs (32 or 64) of `most_tokens` tokens (16, 32 or 64); T may be larger. `splits`
    programs share a sum.
    """
    tokens, k = x.shape
    stride = weight.shape[1]
    out = x.new_empty(tokens, n, dtype=out_dtype)
    parts = out if splits == 1 else x.new_empty(splits, tokens, n, dtype=torch.float32)
    launcher(split_kernel)[(ceil_div(n, rows), ceil_div(tokens, most_tokens), splits)](
        x, weight, scale, bias, residual, parts, tokens, n,
        K=k, STRIDE=stride, PACKED=weight.dtype == torch.uint8, RELU=relu, SPLITS=splits,
        TOKENS=most_tokens, ROWS=rows, DEPTH=depth(stride, DEPTH), num_warps=WARPS, num_stages=STAGES[most_tokens],
    )  # fmt: skip
    if splits > 1:
        launcher(sum_kernel)[(ceil_div(n, SUM_BLOCK), tokens)](
            parts, scale, bias, residual, out, tokens, n, RELU=relu, SPLITS=splits, BLOCK=SUM_BLOCK
        )
    return out
