"""Draw tokens from the largest logits of a row, where these alone decide what the filters keep.

Filters mostly keep a few tokens. To compare, sum and sort all logits for them took 14 ms at 16 rows of 50,272, a
quarter of a step of OPT-125M. To find the largest 64 takes 1 ms, and plain Python filters so few faster than tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, nextafter

import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.sampling.filters import FILTERS, LIMITS, Candidates, count_at_least, parameter
from opt_trt.runtime.sequence import TokenSequence

ROUNDS = (64, 1024)  # candidates per row: the first round settles most rows with top-k, and peaked ones


@dataclass(frozen=True)
class Kept:
    """The tokens of a row that the filters leave, in ascending order, and their weights, of any sum."""

    token_ids: list[int]
    weights: list[float]

    def draw(self, uniform: float) -> int:
        """Return the token at which a number from `[0, 1)` falls."""
        cumulative = [*accumulate(self.weights)]
        total = cumulative[-1]
        below_total = nextafter(total, 0.0)  # a product rounded up would fall behind the last one
        return self.token_ids[bisect_right(cumulative, min(uniform * total, below_total))]


def draw_among_largest(
    logits: torch.Tensor, sequences: Sequence[TokenSequence], uniforms: Sequence[float]
) -> list[int | None]:
    """Return the token of each row of fp32 `[R, V]` at which a number from `[0, 1)` falls.

    None stands for a row whose largest logits do not decide it. No row depends on another.
    """
    token_ids: list[int | None] = [None] * len(sequences)
    left = [row for row, s in enumerate(sequences) if _can_tell(s.request.sampling)]
    for number in ROUNDS if left else ():
        asked = [sequences[row] for row in left]
        found = find_candidates(logits if len(left) == len(logits) else logits[left], asked, number)
        for row, candidates, sequence in zip(left, found, asked, strict=True):
            kept = keep(candidates, sequence.request.sampling)
            token_ids[row] = kept.draw(uniforms[row]) if kept else None
        left = [row for row in left if token_ids[row] is None]
        if not left:
            break
    return token_ids


def _can_tell(params: Sampling) -> bool:
    """Return whether a request asks for filters that leave tokens out, all of which have a limit."""
    asked = [name for name in params.processors if name in FILTERS and name != "temperature"]
    return bool(asked) and all(name in LIMITS for name in asked)


def find_candidates(logits: torch.Tensor, sequences: Sequence[TokenSequence], number: int) -> list[Candidates]:
    """Return the `number` largest logits of each row of fp32 `[R, V]`."""
    best, token_ids = logits.topk(min(number, logits.shape[1]))
    temperature = parameter("temperature", sequences)
    best /= temperature
    totals: list[float | None] = [None] * len(sequences)
    unlimited = [row for row, s in enumerate(sequences) if s.request.sampling.top_k == 0]
    for row, total in zip(unlimited, _log_totals(logits, temperature, best[:, 0], unlimited), strict=True):
        totals[row] = total
    end = [-inf] if best.shape[1] == logits.shape[1] else []
    rows = zip(best.tolist(), token_ids.tolist(), totals, strict=True)
    return [Candidates([*row, *end], ids, total) for row, ids, total in rows]


def keep(found: Candidates, params: Sampling) -> Kept | None:
    """Return what the filters leave; None where rounding decides, or where they may keep tokens beyond these."""
    if not -inf < found.logits[0] < inf:
        return None
    count: int | None = count_at_least(found.logits, nextafter(-inf, 0))
    for name, limit in LIMITS.items():
        if count is not None and name in params.processors:
            count = limit(found, params, count)
    if count is None or count == len(found.logits):
        return None
    pairs = sorted(zip(found.token_ids[:count], found.weights[:count], strict=True))
    return Kept([token_id for token_id, _ in pairs], [weight for _, weight in pairs])


def _log_totals(logits: torch.Tensor, temperature: torch.Tensor, best: torch.Tensor, rows: list[int]) -> list[float]:
    """Return `(logits / temperature).logsumexp(-1)` of some rows.

    It is computed from the largest probability, which is five times faster.
    """
    if not rows:
        return []
    as_they_are = len(rows) == len(logits) and bool((temperature == 1).all())
    scaled = logits if as_they_are else logits[rows] / temperature[rows]  # a copy of megabytes takes a millisecond
    return (best[rows].double() - scaled.softmax(-1).amax(-1).double().log()).tolist()
