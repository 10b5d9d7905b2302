"""Perplexity: literal values and the edges of floating point."""

from __future__ import annotations

import math

import pytest
import torch

from opt_trt.evaluate.perplexity import ROWS_AT_ONCE, mean_nll, perplexity


def test_equal_logits_are_as_perplexing_as_the_vocabulary_is_large() -> None:
    assert perplexity(mean_nll(torch.zeros(3, 4), (0, 1, 3))) == pytest.approx(4.0)


def test_nll_is_the_mean_over_rows() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # probabilities 1/4, 3/4
    assert mean_nll(logits, (1, 0)) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_rows_beyond_the_first_chunk_count() -> None:
    logits = torch.zeros(2 * ROWS_AT_ONCE + 1, 2)
    logits[-1, 0] = 50.0  # as good as certain of the token that does not come
    assert mean_nll(logits, [1] * len(logits)) == pytest.approx((2 * ROWS_AT_ONCE * math.log(2) + 50) / len(logits))


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = torch.tensor([[11.0, 0.0]], dtype=torch.float16)
    # In fp16 the probability would round to 1 and the likelihood's logarithm to 0.
    assert mean_nll(logits, (0,)) == pytest.approx(math.log1p(math.exp(-11)), rel=1e-3)


def test_too_large_for_a_float_is_infinite() -> None:
    assert perplexity(1e4) == math.inf


def test_nan_logits_stay_visible() -> None:
    assert math.isnan(perplexity(mean_nll(torch.tensor([[math.nan, 0.0]]), (0,))))
