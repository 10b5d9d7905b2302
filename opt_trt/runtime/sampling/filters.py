"""The filters of a draw, each in two forms: for whole rows of logits, and for the largest logits of one row.

The first form is a `Processor`, as transformers defines it: see `processors`. The second form is a `Limit`. It returns
how many of the first `count` candidates are kept, or None where it cannot tell. A filter may have no limit: requests
that ask for it are drawn from whole rows, which is slower.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import exp, inf, log
from operator import neg

import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.sequence import TokenSequence

MARGIN = 1e-5  # a difference of probabilities or logits: fp32 sums over a vocabulary have errors of some 1e-6


@dataclass(frozen=True)
class Candidates:
    """The largest logits of a row, divided by its temperature, in descending order."""

    logits: list[float]  # the last one is -inf if all possible tokens are here
    token_ids: list[int]
    log_total: float | None  # log of the sum of exp over the whole row; None with top-k, which limits the sum

    @cached_property
    def weights(self) -> list[float]:
        """The probabilities, divided by the first one."""
        return [exp(logit - self.logits[0]) for logit in self.logits[: len(self.token_ids)]]


Processor = Callable[[torch.Tensor, Sequence[TokenSequence]], torch.Tensor]
Table = Mapping[str, Processor]
Limit = Callable[[Candidates, Sampling, int], int | None]


def parameter(name: str, sequences: Sequence[TokenSequence], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return one option of every sequence: `[R, 1]`."""
    return torch.tensor([[getattr(s.request.sampling, name)] for s in sequences], dtype=dtype)


def _apply_temperature(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    return logits.div_(parameter("temperature", sequences))


def _keep_top_k(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Keep the `top_k` largest logits, and all that equal the least of them."""
    top_k = torch.tensor([[min(s.request.sampling.top_k, logits.shape[1])] for s in sequences])
    least = logits.topk(int(top_k.max())).values.gather(1, top_k - 1)
    return logits.masked_fill(logits < least, -inf)


def _keep_top_p(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Keep the fewest most probable tokens that hold `top_p` of the probability, at least one."""
    ascending, token_ids = logits.sort()
    drop = ascending.softmax(-1).cumsum(-1) <= (1 - parameter("top_p", sequences, torch.float64)).float()
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, token_ids, drop), -inf)


def _keep_min_p(logits: torch.Tensor, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Keep the tokens that are at least `min_p` times as probable as the first one."""
    probabilities = logits.softmax(-1)
    least = parameter("min_p", sequences) * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -inf)


def _by_top_k(found: Candidates, params: Sampling, count: int) -> int | None:
    """Return how many are kept: the `top_k` largest, and all that equal the least of them."""
    least = found.logits[min(params.top_k, len(found.logits)) - 1]
    more_may_equal_it = least == found.logits[-1] > -inf
    return None if more_may_equal_it else min(count, count_at_least(found.logits, least))


def _by_top_p(found: Candidates, params: Sampling, count: int) -> int | None:
    """Return how many are kept: the fewest that hold `top_p` of the probability, at least one."""
    weights = found.weights[:count]
    total = sum(weights) if found.log_total is None else exp(found.log_total - found.logits[0])
    before = [*accumulate(weights, initial=0.0)][:count]  # the probability before each; the first one always stays
    edge, margin = params.top_p * total, MARGIN * total
    least, most = bisect_left(before, edge - margin, 1), bisect_right(before, edge + margin, 1)
    ties = least < count and found.logits[least - 1] == found.logits[least]
    return None if least < most or ties else least


def _by_min_p(found: Candidates, params: Sampling, count: int) -> int | None:
    """Return how many are kept: those at least `min_p` times as probable as the first one."""
    edge = found.logits[0] + log(params.min_p)
    least, most = (count_at_least(found.logits[:count], value) for value in (edge + MARGIN, edge - MARGIN))
    return None if least < most else least


def count_at_least(descending: list[float], least: float) -> int:
    """Return how many of the numbers are at least `least`."""
    return bisect_right(descending, -least, key=neg)


# In the order of application.
FILTERS: Table = {
    "temperature": _apply_temperature,
    "top_k": _keep_top_k,
    "top_p": _keep_top_p,
    "min_p": _keep_min_p,
}
LIMITS: Mapping[str, Limit] = {"top_k": _by_top_k, "top_p": _by_top_p, "min_p": _by_min_p}
