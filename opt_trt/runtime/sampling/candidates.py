"""The tokens a draw is about: top-k, top-p and min-p, looked for among the largest logits of a row.

They mostly keep a few tokens. To compare, sum and sort all logits for them took 14 ms at 16 rows of 50,272, a quarter
of a step of OPT-125M; to find the largest 64 takes one, and plain Python filters so few faster than tensors do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import exp, inf, log, nextafter
from operator import neg

import torch

from opt_trt.config.sampling import SamplingParams
from opt_trt.runtime.sampling.processors import parameter
from opt_trt.runtime.sequence import TokenSequence

ROUNDS = (64, 1024)  # candidates looked at: the first settle most rows with top-k, and peaked ones
MARGIN = 1e-5  # of probability, or of a logit: fp32 sums over a vocabulary differ by some 1e-6


@dataclass(frozen=True)
class Candidates:
    """The largest logits of a row, divided by its temperature, in descending order."""

    logits: list[float]  # the last one is -inf if all that are possible are here
    token_ids: list[int]
    log_total: float | None  # logarithm of the sum over all of the row's exponentials, where no top-k limits it

    @cached_property
    def weights(self) -> list[float]:
        """Probabilities, as shares of the first one's."""
        return [exp(logit - self.logits[0]) for logit in self.logits[: len(self.token_ids)]]


@dataclass(frozen=True)
class Kept:
    """The tokens the filters leave of a row, in ascending order, and their shares of no particular total."""

    token_ids: list[int]
    weights: list[float]

    def draw(self, uniform: float) -> int:
        """The token at which a number from `[0, 1)` falls."""
        cumulative = [*accumulate(self.weights)]
        total = cumulative[-1]
        below_total = nextafter(total, 0.0)  # a product rounded up would fall behind the last one
        return self.token_ids[bisect_right(cumulative, min(uniform * total, below_total))]


def draw_among_largest(
    logits: torch.Tensor, sequences: Sequence[TokenSequence], uniforms: Sequence[float]
) -> list[int | None]:
    """The token of each row of fp32 `[R, V]` at which a number from `[0, 1)` falls; None if these cannot tell.

    No row depends on another.
    """
    token_ids: list[int | None] = [None] * len(sequences)
    left = [row for row, s in enumerate(sequences) if _cuts(s.request.sampling)]
    for number in ROUNDS if left else ():
        asked = [sequences[row] for row in left]
        found = largest(logits if len(left) == len(logits) else logits[left], asked, number)
        for row, candidates, sequence in zip(left, found, asked, strict=True):
            kept = keep(candidates, sequence.request.sampling)
            token_ids[row] = kept.draw(uniforms[row]) if kept else None
        left = [row for row in left if token_ids[row] is None]
        if not left:
            break
    return token_ids


def _cuts(params: SamplingParams) -> bool:
    """Whether any of the filters is asked for that leave tokens out."""
    return params.top_k > 0 or 0 < params.top_p < 1 or params.min_p > 0


def largest(logits: torch.Tensor, sequences: Sequence[TokenSequence], number: int) -> list[Candidates]:
    """The `number` largest of each row of fp32 `[R, V]`."""
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


def keep(found: Candidates, params: SamplingParams) -> Kept | None:
    """What the filters leave; None where rounding decides, or where tokens beyond the candidates may be kept."""
    if not -inf < found.logits[0] < inf:
        return None
    count: int | None = _count(found.logits, nextafter(-inf, 0))
    for limit in (_by_top_k, _by_top_p, _by_min_p):
        if count is not None:
            count = limit(found, params, count)
    if count is None or count == len(found.logits):
        return None
    pairs = sorted(zip(found.token_ids[:count], found.weights[:count], strict=True))
    return Kept([token_id for token_id, _ in pairs], [weight for _, weight in pairs])


def _by_top_k(found: Candidates, params: SamplingParams, count: int) -> int | None:
    """How many of the first `count` are kept: the `top_k` largest, and whatever equals the least of them."""
    if params.top_k == 0:
        return count
    least = found.logits[min(params.top_k, len(found.logits)) - 1]
    more_may_equal_it = least == found.logits[-1] > -inf
    return None if more_may_equal_it else min(count, _count(found.logits, least))


def _by_top_p(found: Candidates, params: SamplingParams, count: int) -> int | None:
    """The fewest that hold `top_p` of the probability, at least one."""
    if params.top_p in (0, 1):
        return count
    weights = found.weights[:count]
    total = sum(weights) if found.log_total is None else exp(found.log_total - found.logits[0])
    before = [*accumulate(weights, initial=0.0)][:count]  # more probable than each; the first one always stays
    edge, margin = params.top_p * total, MARGIN * total
    least, most = bisect_left(before, edge - margin, 1), bisect_right(before, edge + margin, 1)
    ties = least < count and found.logits[least - 1] == found.logits[least]
    return None if least < most or ties else least


def _by_min_p(found: Candidates, params: SamplingParams, count: int) -> int | None:
    """Those at least `min_p` times as probable as the first."""
    if params.min_p == 0:
        return count
    edge = found.logits[0] + log(params.min_p)
    least, most = (_count(found.logits[:count], value) for value in (edge + MARGIN, edge - MARGIN))
    return None if least < most else least


def _count(descending: list[float], least: float) -> int:
    """How many are at least that large."""
    return bisect_right(descending, -least, key=neg)


def _log_totals(logits: torch.Tensor, temperature: torch.Tensor, best: torch.Tensor, rows: list[int]) -> list[float]:
    """`(logits / temperature).logsumexp(-1)` of some rows, from the largest probability: five times faster."""
    if not rows:
        return []
    as_they_are = len(rows) == len(logits) and bool((temperature == 1).all())
    scaled = logits if as_they_are else logits[rows] / temperature[rows]  # a copy of megabytes takes a millisecond
    return (best[rows].double() - scaled.softmax(-1).amax(-1).double().log()).tolist()
