"""Places of keys and values in the paged KV cache [blocks, 2, HEADS, BLOCK, SIZE], counted in lines of SIZE numbers.

A value lies HEADS * BLOCK lines behind its key.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def slot_line(slot: tl.tensor, head: tl.tensor, HEADS: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the line of a head's key in a slot."""
    return (slot // BLOCK * 2 * HEADS + head) * BLOCK + slot % BLOCK


@triton.jit
def key_lines(
    table: tl.tensor, place: tl.tensor, held: tl.tensor, head: tl.tensor, HEADS: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Return the lines of a head's keys at positions `place` of the sequence with this block table, where `held`."""
    block = tl.load(table + place // BLOCK, mask=held, other=0).to(tl.int64)
    return (block * 2 * HEADS + head) * BLOCK + place % BLOCK


@triton.jit
def store_pair(
    cache: tl.tensor, line: tl.tensor, key: tl.tensor, value: tl.tensor, at: tl.tensor, kept: tl.tensor,
    GAP: tl.constexpr, SIZE: tl.constexpr,
) -> None:  # fmt: skip
    """Write a head's key to a line and its value GAP lines behind it, where `kept`."""
    tl.store(cache + line * SIZE + at, key, mask=kept)
    tl.store(cache + (line + GAP) * SIZE + at, value, mask=kept)
