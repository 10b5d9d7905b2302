"""Logits are changed bit for bit as transformers changes them, whatever else is in the batch."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as oracle

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.sequence import TokenSequence

END = 2
PROMPT = 9  # tokens


def sequence(params: Sampling, history: list[int]) -> TokenSequence:
    made = TokenSequence(0, Request(tuple(history[:PROMPT]), 99, END, sampling=params))
    made.output_ids = history[PROMPT:]
    return made


def transformers_says(params: Sampling, history: list[int], logits: torch.Tensor) -> torch.Tensor:
    """What `generate` does with one row of logits, in its order."""
    made: dict[str, Any] = {
        "logit_bias": lambda: oracle.SequenceBiasLogitsProcessor({(i,): b for i, b in params.logit_bias}),
        "repetition_penalty": lambda: oracle.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
        "no_repeat_ngram_size": lambda: oracle.NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size),
        "bad_words": lambda: oracle.NoBadWordsLogitsProcessor([list(word) for word in params.bad_words], END),
        "min_length": lambda: oracle.MinNewTokensLengthLogitsProcessor(PROMPT, params.min_length, END),
        "temperature": lambda: oracle.TemperatureLogitsWarper(params.temperature),
        "top_k": lambda: oracle.TopKLogitsWarper(params.top_k),
        "top_p": lambda: oracle.TopPLogitsWarper(params.top_p),
        "min_p": lambda: oracle.MinPLogitsWarper(params.min_p),
    }
    scores = logits.unsqueeze(0)
    for name, make in made.items():
        if name in params.processors:
            scores = make()(torch.tensor([history]), scores)
    return scores[0]


ALL_TOKENS = {"top_k": 0, "top_p": 1.0}
OPTIONS = {
    "logit_bias": {"logit_bias": ((3, -2.5), (7, 1.25), (40, float("-inf")))},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.7},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bigrams": {"no_repeat_ngram_size": 2},
    "trigrams": {"no_repeat_ngram_size": 3},
    "longer_than_the_text": {"no_repeat_ngram_size": 500},
    "bad_words": {"bad_words": ((5,), (3, 4), (1, 2, 3), (0,) * 400)},
    "min_length": {"min_length": 60},
    "temperature": ALL_TOKENS | {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_k_of_all": {"top_k": 10**30},
    "top_p": ALL_TOKENS | {"top_p": 0.8},
    "hardly_any_top_p": ALL_TOKENS | {"top_p": 1e-7},
    "min_p": ALL_TOKENS | {"min_p": 0.2},
    "all_of_min_p": ALL_TOKENS | {"min_p": 1.0},
    "top_k_and_top_p": {"top_k": 8, "top_p": 0.7, "temperature": 1.4},
    "everything": {
        "logit_bias": ((3, -2.5), (7, 1.25)), "repetition_penalty": 1.3, "no_repeat_ngram_size": 2,
        "bad_words": ((5,), (3, 4)), "min_length": 8, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05,
    },
}  # fmt: skip


def cases(vocab: int) -> tuple[list[TokenSequence], torch.Tensor, list[torch.Tensor]]:
    """Sequences with every option in one batch, their logits, and what transformers makes of each row alone."""
    rng = random.Random(vocab)
    histories = [[rng.randrange(0, 8) for _ in range(rng.randrange(PROMPT, 60))] for _ in range(4 * len(OPTIONS))]
    params = [Sampling(**values) for values in OPTIONS.values() for _ in range(4)]
    logits = 4 * torch.randn(len(params), vocab, generator=torch.Generator().manual_seed(vocab))
    rows = zip(params, histories, logits, strict=True)
    return (
        [sequence(*pair) for pair in zip(params, histories, strict=True)],
        logits,
        [transformers_says(*r) for r in rows],
    )


@pytest.mark.parametrize("vocab", [50, 5001])
def test_a_mixed_batch_equals_transformers_row_by_row(vocab: int) -> None:
    sequences, logits, expected = cases(vocab)
    for one, got, wanted in zip(sequences, process(logits.clone(), sequences), expected, strict=True):
        assert torch.equal(got, wanted), one.request.sampling


WORDS = st.lists(st.lists(st.integers(3, 7), min_size=1, max_size=3).map(tuple), max_size=3, unique=True).map(tuple)
PARAMS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5.0),
    top_k=st.sampled_from([2, 5, 40]),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.5, 2.0),
    no_repeat_ngram_size=st.integers(0, 4),
    min_length=st.integers(0, 20),
    bad_words=WORDS,
)


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(st.lists(st.tuples(PARAMS, st.lists(st.integers(0, 7), min_size=PROMPT, max_size=30)), max_size=4))
def test_any_mix_of_options_equals_transformers(rows: list[tuple[Sampling, list[int]]]) -> None:
    logits = 4 * torch.randn(len(rows), 60, generator=torch.Generator().manual_seed(len(rows)))
    processed = process(logits.clone(), [sequence(*row) for row in rows])
    for row, got, before in zip(rows, processed, logits, strict=True):
        assert torch.equal(got, transformers_says(*row, before))


def test_every_option_changes_something() -> None:
    _, logits, expected = cases(50)
    changed = {
        name for i, name in enumerate(OPTIONS) for j in range(4) if not logits[4 * i + j].equal(expected[4 * i + j])
    }
    assert changed == set(OPTIONS) - {"longer_than_the_text", "top_k_of_all"}


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 0.9999999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("round_to", [None, 0, 1])  # rounded logits tie
def test_top_p_cuts_where_transformers_does(top_p: float, spread: float, round_to: int | None) -> None:
    logits = spread * torch.randn(8, 5001, generator=torch.Generator().manual_seed(7))
    if round_to is not None:
        logits = logits.round(decimals=round_to)
    logits[:4, 100:] = float("-inf")
    params = Sampling(top_k=0, top_p=top_p)
    expected = oracle.TopPLogitsWarper(top_p)(torch.empty(8, 0), logits)
    assert torch.equal(process(logits.clone(), [sequence(params, [4] * PROMPT)] * 8), expected)


def test_the_cut_of_top_p_is_exact_where_it_falls_on_a_token() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    for top_p, kept in [(0.5, 1), (0.50001, 2), (0.75, 2), (0.75001, 3)]:
        processed = process(logits.clone(), [sequence(Sampling(top_k=0, top_p=top_p), [1] * PROMPT)])
        assert processed.isfinite().sum() == kept


def test_ties_at_the_edge_of_top_k_stay() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    kept = process(logits.clone(), [sequence(Sampling(top_k=2), [4] * PROMPT)]).isfinite()
    assert kept.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        ({"presence_penalty": 0.5}, [1.0, 0.5, 0.5, 1.0]),
        ({"frequency_penalty": 0.5}, [1.0, 0.0, 0.5, 1.0]),
        ({"presence_penalty": -1.0, "frequency_penalty": 0.25}, [1.0, 1.5, 1.75, 1.0]),
    ],
)
def test_presence_and_frequency_count_new_tokens_only(penalty: dict[str, float], expected: list[float]) -> None:
    one = sequence(Sampling(**penalty), [0] * PROMPT + [1, 2, 1])
    assert process(torch.ones(1, 4), [one]).tolist() == [expected]


def test_rows_with_different_penalties_do_not_mix() -> None:
    params = [Sampling(), Sampling(frequency_penalty=1.0), Sampling(presence_penalty=2.0)]
    rows = process(torch.zeros(3, 3), [sequence(p, [0] * PROMPT + [1, 1]) for p in params])
    assert rows.tolist() == [[0, 0, 0], [0, -2, 0], [0, -2, 0]]


def test_without_an_end_id_min_length_bans_nothing() -> None:
    one = sequence(Sampling(min_length=5), [3] * PROMPT)
    one = TokenSequence(0, replace(one.request, end_id=None))
    assert process(torch.zeros(1, 4), [one]).tolist() == [[0.0] * 4]
