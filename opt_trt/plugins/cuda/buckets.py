"""Buckets of packed tokens on a GPU: each has tactics of its own, and so programs of its own."""

from __future__ import annotations

from collections.abc import Sequence

BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # by their upper bounds; one more is open
Bound = int | None  # None is that of the open bucket


def bounds_for(most: int) -> tuple[Bound, ...]:
    """The buckets that steps of up to `most` tokens fall into: `bounds_for(5)` → `(1, 2, 4, 8)`."""
    if most > BUCKETS[-1]:
        return (*BUCKETS, None)
    return tuple(bound for bound in BUCKETS if bound < 2 * most)


def bound_of(tokens: int, bounds: Sequence[Bound] = (*BUCKETS, None)) -> Bound:
    """The bucket of `bounds`, which are ascending, that so many tokens fall into."""
    return next(bound for bound in bounds if bound is None or tokens <= bound)
