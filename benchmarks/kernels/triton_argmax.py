"""The greedy choice on the GPU: the index of each row's largest logit; of equal logits, the least index."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import launcher

STEP, WARPS = 4096, 16  # a program reads STEP logits at a time


@triton.jit
def argmax_kernel(logits: tl.tensor, out: tl.tensor, size: int, STEP: tl.constexpr) -> None:
    """Find the largest logit of row i in program i."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, STEP)
    best = tl.full([STEP], -float("inf"), tl.float32)
    where = tl.zeros([STEP], tl.int32) + at
    for start in range(0, size, STEP):
        values = tl.load(logits + row * size + start + at, mask=start + at < size, other=-float("inf")).to(tl.float32)
        where = tl.where(values > best, start + at, where)
        best = tl.maximum(best, values)
    largest = tl.max(best, 0)
    tl.store(out + row, tl.min(tl.where(best == largest, where, size), 0).to(tl.int64))


@triton_op("opt_trt::argmax", mutates_args={})
def argmax(logits: torch.Tensor) -> torch.Tensor:
    """Return int64 [L] for `logits` [L, V], none of which may be NaN."""
    rows, size = logits.shape
    out = logits.new_empty(rows, dtype=torch.int64)
    launcher(argmax_kernel)[(rows,)](logits, out, size, STEP=STEP, num_warps=WARPS)
    return out
