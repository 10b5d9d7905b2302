"""Buckets of packed tokens on a GPU. Each has its own tactics, and so its own programs."""

from __future__ import annotations

from collections.abc import Sequence

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # upper bounds; one more bucket is open
Bound = int | None  # the upper bound of a bucket, None for the open one


def bounds_for(most: int) -> tuple[Bound, ...]:
    """Return the buckets that steps of up to `most` tokens fall into: `bounds_for(5)` → `(1, 2, 4, 8)`."""
    if most > BUCKETS[-1]:
        return (*BUCKETS, None)
    return tuple(bound for bound in BUCKETS if bound < 2 * most)


def bound_of(tokens: int, bounds: Sequence[Bound] = (*BUCKETS, None)) -> Bound:
    """Return the bucket that a number of tokens falls into; `bounds` are ascending."""
    return next(bound for bound in bounds if bound is None or tokens <= bound)
