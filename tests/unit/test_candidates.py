"""Filters among the largest logits keep what they keep of whole rows, or say that they do not know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.config.sampling import SamplingParams
from opt_trt.runtime.candidates import FEW, MANY, Candidates, find_all, find_few, find_many
from opt_trt.runtime.request import Request
from opt_trt.runtime.sequence import TokenSequence

FIND = {FEW: find_few, MANY: find_many}
Find = Callable[..., Candidates]
PARAMS = st.builds(
    SamplingParams,
    top_k=st.sampled_from([2, 50, FEW - 1, FEW, FEW + 1, 700, MANY, 100_000]),
    top_p=st.sampled_from([0.0, 1e-6, 0.3, 0.9, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
) | st.builds(
    SamplingParams,
    top_k=st.just(0),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)


def sequences(*params: SamplingParams) -> list[TokenSequence]:
    return [TokenSequence(i, Request((1,), 9, sampling=p)) for i, p in enumerate(params)]


def random_logits(rows: int, vocab: int, spread: float, decimals: int | None = None) -> torch.Tensor:
    logits = spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab + rows))
    return logits if decimals is None else logits.round(decimals=decimals)  # rounded logits tie


def whole(found: Candidates, vocab: int) -> torch.Tensor:
    return torch.full((len(found.logits), vocab), -torch.inf).scatter(1, found.token_ids, found.logits)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PARAMS, min_size=1, max_size=5),
    st.sampled_from([7, FEW, FEW + 1, 2000, 8 * MANY + 5]),
    st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0, 3, 0.99]),
)
def test_what_is_settled_is_what_transformers_keeps(
    params: list[SamplingParams], vocab: int, spread: float, decimals: int | None, banned: float
) -> None:
    logits = random_logits(len(params), vocab, spread, decimals)
    logits[:, : int(banned * vocab) if banned < 1 else min(int(banned), vocab - 1)] = -torch.inf
    exact = whole(find_all(logits.clone(), sequences(*params)), vocab)
    for find in FIND.values():
        found = find(logits, sequences(*params))
        assert torch.equal(whole(found, vocab)[found.settled], exact[found.settled])


@pytest.mark.parametrize("number", FIND)
@pytest.mark.parametrize(
    "params", [{"top_k": 50}, {"top_k": 50, "top_p": 0.9}, {"top_k": 0, "top_p": 0.9}, {"top_k": 0, "min_p": 0.1}]
)
def test_peaked_rows_are_settled(number: int, params: dict[str, float]) -> None:
    found = FIND[number](random_logits(16, 50272, 6.0), sequences(*[SamplingParams(**params)] * 16))  # type: ignore[arg-type]
    assert found.settled.sum() >= 15 and found.logits.shape == (16, number)


@pytest.mark.parametrize("find", FIND.values())
def test_ids_ascend_and_do_not_come_twice(find: Find) -> None:
    found = find(random_logits(4, 50272, 1.0, 0), sequences(*[SamplingParams(top_k=40)] * 4))
    assert (found.token_ids.diff() > 0).all()


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 0, "top_p": 0.5},  # of equal logits: more than the candidates
        {"top_k": 40},  # all of them equal the last one kept
        {"top_k": 5000},
        {"top_k": 0, "top_p": 0.5, "min_p": 1.0},
    ],
)
@pytest.mark.parametrize("find", FIND.values())
def test_rows_whose_kept_tokens_reach_beyond_the_candidates_are_not_settled(
    find: Find, params: dict[str, float]
) -> None:
    assert not find(torch.zeros(2, 10_000), sequences(*[SamplingParams(**params)] * 2)).settled.any()  # type: ignore[arg-type]


def test_a_cut_that_falls_on_a_token_is_not_settled() -> None:
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, :4] = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for top_p, settled in [(0.5, False), (0.6, True), (0.75, False), (0.8, False)]:  # the last: two tokens tie
        assert find_few(logits, sequences(SamplingParams(top_k=0, top_p=top_p))).settled.tolist() == [settled]


def test_ties_of_top_k_beyond_the_candidates_count_for_top_p() -> None:
    """Three tokens of logit 2 and 297 of logit 1 are kept: what top_p leaves depends on all of them."""
    logits = torch.tensor([[2.0] * 3 + [1.0] * 297 + [0.0] * 700])
    params = sequences(SamplingParams(top_k=10, top_p=0.1))
    assert not find_few(logits, params).settled.any()
    found = find_many(logits, params)
    assert torch.equal(whole(found, 1000)[found.settled], whole(find_all(logits, params), 1000)[found.settled])


def test_a_row_does_not_depend_on_the_others() -> None:
    options = [SamplingParams(top_k=50), SamplingParams(top_k=0, top_p=0.9), SamplingParams(top_k=0, min_p=0.1)] * 5
    logits = random_logits(15, 50272, 5.0)
    together = find_few(logits, sequences(*options))
    for row, params in enumerate(options):
        alone = find_few(logits[row : row + 1], sequences(params))
        assert torch.equal(alone.logits[0], together.logits[row])
        assert torch.equal(alone.token_ids[0], together.token_ids[row])
