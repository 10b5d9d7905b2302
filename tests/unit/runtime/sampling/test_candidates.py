"""Filters among the largest logits keep what they keep of whole rows, or say that they do not know."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.candidates import ROUNDS, Kept, find_candidates, keep
from opt_trt.runtime.sampling.filters import FILTERS
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.sequence import TokenSequence

FEW, MANY = ROUNDS
PARAMS = st.builds(
    Sampling,
    temperature=st.sampled_from([1.0, 0.7, 3.0]),
    top_k=st.sampled_from([2, 50, FEW - 1, FEW, FEW + 1, 700, MANY, 100_000]),
    top_p=st.sampled_from([0.0, 1e-6, 0.3, 0.9, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
) | st.builds(
    Sampling,
    top_k=st.just(0),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)


def sequences(*params: Sampling) -> list[TokenSequence]:
    return [TokenSequence(i, Request((1,), 9, sampling=p)) for i, p in enumerate(params)]


def random_logits(rows: int, vocab: int, spread: float, decimals: int | None = None) -> torch.Tensor:
    logits = spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab + rows))
    return logits if decimals is None else logits.round(decimals=decimals)  # rounded logits tie


def found(logits: torch.Tensor, number: int, *params: Sampling) -> list[Kept | None]:
    rows = find_candidates(logits, sequences(*params), number)
    return [keep(row, asked) for row, asked in zip(rows, params, strict=True)]


def kept_of_whole_rows(logits: torch.Tensor, *params: Sampling) -> list[dict[int, float]]:
    """Token ids and probabilities, by transformers' operations."""
    kept = process(logits.clone(), sequences(*params), FILTERS).double().softmax(-1).tolist()
    return [{token_id: p for token_id, p in enumerate(row) if p > 0} for row in kept]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PARAMS, min_size=1, max_size=5),
    st.sampled_from([7, FEW, FEW + 1, 2000, 8 * MANY + 5]),
    st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0, 3, 0.99]),
)
def test_what_is_settled_is_what_transformers_keeps(
    params: list[Sampling], vocab: int, spread: float, decimals: int | None, banned: float
) -> None:
    logits = random_logits(len(params), vocab, spread, decimals)
    logits[:, : int(banned * vocab) if banned < 1 else min(int(banned), vocab - 1)] = -torch.inf
    exact = kept_of_whole_rows(logits, *params)
    for number in ROUNDS:
        for kept, expected in zip(found(logits, number, *params), exact, strict=True):
            if kept:
                shares = [weight / sum(kept.weights) for weight in kept.weights]
                assert dict(zip(kept.token_ids, shares, strict=True)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize(
    "params", [{"top_k": 50}, {"top_k": 50, "top_p": 0.9}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "min_p": 0.1}]
)
def test_peaked_rows_are_settled(number: int, params: dict[str, float]) -> None:
    kept = found(random_logits(16, 50272, 6.0), number, *[Sampling(**params)] * 16)  # type: ignore[arg-type]
    assert kept.count(None) <= 1


@pytest.mark.parametrize("params", [{"top_k": 40}, {"top_k": 0, "top_p": 0.9}])
def test_all_possible_tokens_may_be_few(params: dict[str, float]) -> None:
    logits = torch.full((1, 50272), -torch.inf)
    logits[0, [7, 9, 40000]] = torch.tensor([1.0, 3.0, 2.0])
    (kept,) = found(logits, FEW, Sampling(**params))  # type: ignore[arg-type]
    assert kept and kept.token_ids == ([7, 9, 40000] if "top_p" not in params else [9, 40000])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_no_numbers_are_not_settled(value: float) -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, 5] = value
    assert found(logits, FEW, Sampling(top_k=40)) == [None]


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 0, "top_p": 0.5},  # of equal logits: more than the candidates
        {"top_k": 40},  # all of them equal the last one kept
        {"top_k": 5000},
        {"top_k": 0, "top_p": 0.5, "min_p": 1.0},
    ],
)
@pytest.mark.parametrize("number", ROUNDS)
def test_rows_whose_kept_tokens_reach_beyond_the_candidates_are_not_settled(
    number: int, params: dict[str, float]
) -> None:
    assert found(torch.zeros(2, 10_000), number, *[Sampling(**params)] * 2) == [None, None]  # type: ignore[arg-type]


def test_a_cut_that_falls_on_a_token_is_not_settled() -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, :4] = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for top_p, settled in [(0.5, False), (0.6, True), (0.75, False), (0.8, False)]:  # the last: two tokens tie
        (kept,) = found(logits, FEW, Sampling(top_k=0, top_p=top_p))
        assert (kept is not None) == settled


def test_ties_of_top_k_beyond_the_candidates_count_for_top_p() -> None:
    """Three tokens of logit 2 and 297 of logit 1 are kept: what top_p leaves depends on all of them."""
    logits, params = torch.tensor([[2.0] * 3 + [1.0] * 297 + [0.0] * 700]), Sampling(top_k=10, top_p=0.1)
    assert found(logits, FEW, params) == found(logits, MANY, params) == [None]  # all tie at top_p's edge
    (kept,) = found(logits, MANY, Sampling(top_k=10, min_p=0.1))
    assert kept and kept.token_ids == [*range(300)]


@pytest.mark.parametrize("number", ROUNDS)
def test_a_row_does_not_depend_on_the_others(number: int) -> None:
    options = [Sampling(top_k=50), Sampling(top_k=0, top_p=0.9), Sampling(top_k=0, min_p=0.1)] * 5
    logits = random_logits(15, 50272, 5.0)
    together = found(logits, number, *options)
    alone = [found(logits[row : row + 1], number, params)[0] for row, params in enumerate(options)]
    assert together == alone
