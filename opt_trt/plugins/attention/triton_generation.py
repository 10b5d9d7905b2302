"""Attention of one query per sequence: each program takes a part of the keys, and one appends the new key and value.

The number of programs does not depend on the lengths, which are read from memory. So a captured graph can be replayed
while sequences grow. Parts are merged in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.attention.triton_cache import key_lines, slot_line, store_pair
from opt_trt.plugins.cuda.kernel_launch import launcher, power_of_two

TILE, WARPS = 4096, 4  # of a program: numbers of keys that it reads at a time, and its warps
LEAST = tl.constexpr(-1e30)  # below every score; finite, as differences of infinities are NaN


@triton.jit
def joined(
    tops: tl.tensor, shares: tl.tensor, totals: tl.tensor, score: tl.tensor, weight: tl.tensor, value: tl.tensor
) -> tl.tensor:
    """Merge the softmax of all lanes with one more score → the highest, the sum of exponentials, the sum of values."""
    top = tl.maximum(tl.max(tops, 0), score)
    factors = tl.exp(tops - top)
    weight *= tl.exp(score - top)
    return top, tl.sum(shares * factors, 0) + weight, tl.sum(totals * factors[:, None], 0) + weight * value


@triton.jit
def generation_kernel(
    qkv: tl.tensor,  # [S, 3, HEADS, SIZE]
    cache: tl.tensor,  # [blocks, 2, HEADS, BLOCK, SIZE]
    slots: tl.tensor,  # int64 [S]
    lens: tl.tensor,  # int32 [S]
    tables: tl.tensor,  # int32 [S, width]
    sums: tl.tensor,  # fp32 [S, HEADS, SPLITS, SIZE], or the output [S, HEADS, SIZE] if there is one part
    stats: tl.tensor,  # fp32 [S, HEADS, SPLITS, 2]: highest score of a part, and sum of the exponentials
    width: int,
    SCALE: tl.constexpr,  # as an argument, a compiled program would pass a double
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Attend, in program (s, h, i), to part i of the cached keys of sequence s; the last part adds the new token."""
    sequence, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    at = tl.arange(0, PADDED_SIZE)
    inside = at < SIZE
    query = qkv + (sequence * 3 * HEADS + head) * SIZE + at
    q = tl.load(query, mask=inside, other=0.0).to(tl.float32) * SCALE
    new_key = tl.load(query + HEADS * SIZE, mask=inside, other=0.0)
    new_value = tl.load(query + 2 * HEADS * SIZE, mask=inside, other=0.0)
    # Slots are below 0 in rows that only fill up a captured graph.
    newest, slot = split == SPLITS - 1, tl.load(slots + sequence)
    line, kept = slot_line(slot, head, HEADS, BLOCK), inside & newest & (slot >= 0)
    store_pair(cache, line, new_key, new_value, at, kept, HEADS * BLOCK, SIZE)

    # Each of KEYS lanes has its own running softmax, so that threads synchronize only after all keys.
    tops = tl.full([KEYS], LEAST, tl.float32)
    shares = tl.zeros([KEYS], tl.float32)
    totals = tl.zeros([KEYS, PADDED_SIZE], tl.float32)
    cached = tl.load(lens + sequence) - 1  # without the new token, which another program may not have written yet
    length = tl.cdiv(tl.cdiv(cached, SPLITS), KEYS) * KEYS
    for start in range(split * length, tl.minimum((split + 1) * length, cached), KEYS):
        place = start + tl.arange(0, KEYS)
        seen = place < cached
        lines = key_lines(tables + sequence * width, place, seen, head, HEADS, BLOCK)
        where, mask = cache + lines[:, None] * SIZE + at[None, :], seen[:, None] & inside[None, :]
        keys = tl.load(where, mask=mask, other=0.0).to(tl.float32)
        values = tl.load(where + HEADS * BLOCK * SIZE, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(keys * q[None, :], 1), LEAST)
        highest = tl.maximum(tops, scores)
        shrink = tl.exp(tops - highest)
        weights = tl.where(seen, tl.exp(scores - highest), 0.0)
        shares = shares * shrink + weights
        totals = totals * shrink[:, None] + weights[:, None] * values
        tops = highest

    score = tl.where(newest, tl.sum(q * new_key.to(tl.float32), 0), LEAST)
    top, share, total = joined(tops, shares, totals, score, tl.where(newest, 1.0, 0.0), new_value.to(tl.float32))
    part = (sequence * HEADS + head) * SPLITS + split
    if SPLITS == 1:
        tl.store(sums + part * SIZE + at, (total / share).to(sums.dtype.element_ty), mask=inside)
    else:
        tl.store(sums + part * SIZE + at, total, mask=inside)
        tl.store(stats + part * 2, top)
        tl.store(stats + part * 2 + 1, share)


@triton.jit
def merge_kernel(
    sums: tl.tensor,
    stats: tl.tensor,
    out: tl.tensor,  # [S, HEADS, SIZE]
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Merge, in program i, the parts of one head of one sequence; a part without keys has weight 0."""
    row = tl.program_id(0).to(tl.int64)
    part = row * SPLITS + tl.arange(0, SPLITS)
    at = tl.arange(0, PADDED_SIZE)
    inside = at < SIZE
    tops = tl.load(stats + part * 2)
    weights = tl.exp(tops - tl.max(tops, 0))
    share = tl.sum(weights * tl.load(stats + part * 2 + 1), 0)
    parts = tl.load(sums + part[:, None] * SIZE + at[None, :], mask=inside[None, :], other=0.0)
    y = tl.sum(parts * weights[:, None], 0) / share
    tl.store(out + row * SIZE + at, y.to(out.dtype.element_ty), mask=inside)


@triton_op("opt_trt::generation_attention", mutates_args={"kv_cache"})
def generation_attention(
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_lens: torch.Tensor,
    block_tables: torch.Tensor,
    splits: int,
) -> torch.Tensor:
    """Append keys and values of `qkv` [S, 3 * H * D] to `kv_cache`, then attend → [S, H * D]; one query per sequence.

    `splits`, a power of two, is the number of parts of a sequence's keys. Tokens with a slot below 0 are not appended.
    """
    _, _, heads, block_tokens, head_size = kv_cache.shape
    sequences, padded_size = qkv.shape[0], power_of_two(head_size)
    out = qkv.new_empty(sequences, heads * head_size)
    single = splits == 1
    sums = out if single else qkv.new_empty(sequences, heads, splits, head_size, dtype=torch.float32)
    stats = out if single else qkv.new_empty(sequences, heads, splits, 2, dtype=torch.float32)
    launcher(generation_kernel)[(sequences, heads, splits)](
        qkv, kv_cache, slot_mapping, kv_lens, block_tables, sums, stats, block_tables.shape[1],
        SCALE=head_size**-0.5, HEADS=heads, SIZE=head_size, PADDED_SIZE=padded_size, BLOCK=block_tokens,
        KEYS=TILE // padded_size, SPLITS=splits, num_warps=WARPS,
    )  # fmt: skip
    if not single:
        launcher(merge_kernel)[(sequences * heads,)](
            sums, stats, out, SIZE=head_size, PADDED_SIZE=padded_size, SPLITS=splits, num_warps=1
        )
    return out
