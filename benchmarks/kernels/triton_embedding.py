"""The sum of token and position embedding in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import ceil_div, launcher

STEP = 1024  # the number of elements that a program writes


@triton.jit
def embedding_kernel(
    input_ids: tl.tensor,
    position_ids: tl.tensor,
    vocab: tl.tensor,
    position: tl.tensor,
    out: tl.tensor,
    size: int,
    STEP: tl.constexpr,
) -> None:
    """Write part i of the hidden state of token t, in program (t, i)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = at < size
    row = tl.load(vocab + tl.load(input_ids + token) * size + at, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(position + tl.load(position_ids + token) * size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * size + at, row.to(out.dtype.element_ty), mask=inside)


@triton_op("opt_trt::embed", mutates_args={})
def embed(
    input_ids: torch.Tensor, position_ids: torch.Tensor, vocab: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """Return `vocab[input_ids] + position[position_ids]`, [T, E] in the tables' type; ids are int64 and valid."""
    tokens, size = input_ids.shape[0], vocab.shape[1]
    out = vocab.new_empty(tokens, size)
    launcher(embedding_kernel)[(tokens, ceil_div(size, STEP))](
        input_ids, position_ids, vocab, position, out, size, STEP=STEP
    )
    return out
