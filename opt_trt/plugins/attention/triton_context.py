"""Attention of many queries per sequence, fused (FMHA): tiles of keys from the paged cache and a running softmax.

Products of fp16 may be summed in fp16, which is TensorRT-LLM's default. The running sums are always fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.attention.triton_append import append
from opt_trt.plugins.attention.triton_cache import key_lines
from opt_trt.plugins.cuda.kernel_launch import launcher, power_of_two

TILES = {64: (64, 4), 128: (128, 8)}  # by padded head size: queries of a program, warps
KEYS, STAGES = 64, 2


@triton.jit
def owner(starts: tl.tensor, sequences: tl.tensor, part: tl.tensor, QUERIES: tl.constexpr) -> tl.tensor:
    """Return the sequence of a part of the queries: the parts of sequence s begin at `starts[s] // QUERIES + s`."""
    low, high = 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        later = tl.load(starts + middle) // QUERIES + middle <= part
        low, high = tl.where(later, middle, low), tl.where(later, high, middle)
    return low


@triton.jit
def context_kernel(
    qkv: tl.tensor,  # [T, 3, HEADS, SIZE]
    cache: tl.tensor,  # [blocks, 2, HEADS, BLOCK, SIZE]
    starts: tl.tensor,  # int32 [S + 1]
    lens: tl.tensor,  # int32 [S]
    tables: tl.tensor,  # int32 [S, width]
    out: tl.tensor,  # [T, HEADS, SIZE]
    sequences: int,
    width: int,
    SCALE: tl.constexpr,  # as an argument, a compiled program would pass a double
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF_SUMS: tl.constexpr,
) -> None:
    """Compute, in program (i, h), head h of part i of the queries: up to QUERIES tokens of one sequence."""
    part, head = tl.program_id(0), tl.program_id(1)
    sequence = owner(starts, sequences, part, QUERIES)
    begin, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    first = (part - begin // QUERIES - sequence) * QUERIES + begin
    if first >= end:
        return
    length = tl.load(lens + sequence)
    token = first + tl.arange(0, QUERIES)[:, None]
    position = length - end + token  # that of each query in its sequence
    at = tl.arange(0, PADDED_SIZE)
    asked = (token < end) & (at[None, :] < SIZE)
    q = tl.load(qkv + (token.to(tl.int64) * 3 * HEADS + head) * SIZE + at[None, :], mask=asked, other=0.0)
    q = (q.to(tl.float32) * SCALE).to(q.dtype)

    top = tl.full([QUERIES], -float("inf"), tl.float32)
    share = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, PADDED_SIZE], tl.float32)
    for start in range(0, tl.minimum(length, length - end + first + QUERIES), KEYS):
        place = start + tl.arange(0, KEYS)
        written = place < length
        line = key_lines(tables + sequence * width, place, written, head, HEADS, BLOCK)
        where, inside = cache + line[None, :] * SIZE + at[:, None], written[None, :] & (at[:, None] < SIZE)
        keys = tl.load(where, mask=inside, other=0.0)
        where, inside = cache + line[:, None] * SIZE + at[None, :], written[:, None] & (at[None, :] < SIZE)
        values = tl.load(where + HEADS * BLOCK * SIZE, mask=inside, other=0.0)
        scores = tl.dot(q, keys, out_dtype=tl.float16 if HALF_SUMS else tl.float32).to(tl.float32)
        scores = tl.where(place[None, :] <= position, scores, -float("inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - highest)
        weights = tl.exp(scores - highest[:, None])
        share = share * shrink + tl.sum(weights, 1)
        total = total * shrink[:, None]
        if HALF_SUMS:
            total += tl.dot(weights.to(q.dtype), values, out_dtype=tl.float16).to(tl.float32)
        else:
            total = tl.dot(weights.to(q.dtype), values, total)
        top = highest
    y = (total / share[:, None]).to(out.dtype.element_ty)
    tl.store(out + (token.to(tl.int64) * HEADS + head) * SIZE + at[None, :], y, mask=asked)


@triton_op("opt_trt::context_attention", mutates_args={"kv_cache"})
def context_attention(
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    query_start: torch.Tensor,
    kv_lens: torch.Tensor,
    block_tables: torch.Tensor,
    half_sums: bool,
) -> torch.Tensor:
    """Append keys and values of `qkv` [T, 3 * H * D] to `kv_cache`, then attend causally → [T, H * D].

    A sequence may have any number of queries. `half_sums` sums products in fp16, which needs a cache of float16.
    """
    _, _, heads, block_tokens, head_size = kv_cache.shape
    tokens, sequences = qkv.shape[0], kv_lens.shape[0]
    padded_size = max(min(TILES), power_of_two(head_size))
    queries, warps = TILES[padded_size]
    append(qkv, kv_cache, slot_mapping)
    out = qkv.new_empty(tokens, heads * head_size)
    # Each sequence rounds its number of parts up, so T // queries + S parts are always enough.
    launcher(context_kernel)[(tokens // queries + sequences, heads)](
        qkv, kv_cache, query_start, kv_lens, block_tables, out, sequences, block_tables.shape[1],
        SCALE=head_size**-0.5, HEADS=heads, SIZE=head_size, PADDED_SIZE=padded_size, BLOCK=block_tokens,
        QUERIES=queries, KEYS=KEYS, HALF_SUMS=half_sums, num_warps=warps, num_stages=STAGES,
    )  # fmt: skip
    return out
