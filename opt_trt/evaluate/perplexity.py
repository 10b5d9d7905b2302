"""Perplexity of a text: exp of the mean negative log-likelihood of its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ROWS_AT_ONCE = 64  # bounds the fp32 copy of the logits: 64 rows of OPT's vocabulary are 13 MB


def mean_nll(logits: torch.Tensor, targets: Sequence[int]) -> float:
    """Return the mean negative log-likelihood in nats; row `i` of `logits` `[n, V]` predicts `targets[i]`."""
    assert len(logits) == len(targets) > 0, (len(logits), len(targets))
    expected = torch.tensor(targets, device=logits.device)
    total = 0.0
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        total += torch.nn.functional.cross_entropy(logits[rows].float(), expected[rows], reduction="sum").item()
    return total / len(targets)


def perplexity(nll: float) -> float:
    """Return exp of a mean negative log-likelihood, or infinity where a float cannot hold it."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
