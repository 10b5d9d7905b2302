"""Write the keys and values of a step's tokens into the paged KV cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opt_trt.plugins.attention.triton_cache import slot_line
from opt_trt.plugins.cuda.kernel_launch import ceil_div, launcher

STEP = 1024  # numbers that a program copies


@triton.jit
def append_kernel(
    qkv: tl.tensor,  # [T, 3, HEADS, SIZE]
    cache: tl.tensor,  # [blocks, 2, HEADS, BLOCK, SIZE]
    slots: tl.tensor,  # int64 [T]
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """Copy, in program (t, kind, i), part i of the keys (kind 0) or values (kind 1) of token t."""
    token, kind = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.program_id(2) * STEP + tl.arange(0, STEP)
    slot = tl.load(slots + token)
    inside = at < HEADS * SIZE
    copied = tl.load(qkv + (token * 3 + 1 + kind) * HEADS * SIZE + at, mask=inside, other=0.0)
    line = slot_line(slot, at // SIZE, HEADS, BLOCK) + kind * HEADS * BLOCK
    tl.store(cache + line * SIZE + at % SIZE, copied, mask=inside & (slot >= 0))


def append(qkv: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor) -> None:
    """Copy keys and values of `qkv` [T, 3 * H * D] to `kv_cache` [blocks, 2, H, P, D], each token's to its slot.

    Tokens whose slot is below 0 are left out.
    """
    _, _, heads, block_tokens, head_size = kv_cache.shape
    launcher(append_kernel)[(qkv.shape[0], 2, ceil_div(heads * head_size, STEP))](
        qkv, kv_cache, slot_mapping, HEADS=heads, SIZE=head_size, BLOCK=block_tokens, STEP=STEP
    )
