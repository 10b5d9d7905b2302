"""Drawn where the logits are, the next token is the one the session draws of whole logits."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.config.sampling import GREEDY, Sampling
from opt_trt.errors import UserError
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.choose import choose
from opt_trt.runtime.sampling.filters import FILTERS
from opt_trt.runtime.sampling.on_device import ROWS_AT_ONCE, drawn, filtered
from opt_trt.runtime.sampling.processors import process
from opt_trt.runtime.scheduling.batch import step_inputs
from opt_trt.runtime.sequence import RandomNumbers, TokenSequence
from opt_trt.step import StepInputs
from tests.unit._cuda_engine import AtOnce, Later, Rerun, predictions, session_of, sum_decoder
from tests.unit._decoders import spec

ALL = Sampling(top_k=0, top_p=1.0)
PARAMS = st.builds(
    Sampling,
    temperature=st.sampled_from([1.0, 0.7, 3.0]),
    top_k=st.sampled_from([2, 50, 700, 100_000]),
    top_p=st.sampled_from([0.0, 1e-6, 0.3, 0.9, 0.999999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    random_seed=st.integers(0, 999),
) | st.builds(
    Sampling,
    top_k=st.just(0),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
    random_seed=st.integers(0, 999),
)


def sequences(*params: Sampling) -> list[TokenSequence]:
    return [TokenSequence(i, Request((1,), 9, sampling=p), blocks=(0,)) for i, p in enumerate(params)]


def step_of(rows: list[TokenSequence]) -> StepInputs:
    return step_inputs([row.chunk(1) for row in rows], spec(draws=True))


def logits_of(rows: int, vocab: int, spread: float, decimals: int | None = None) -> torch.Tensor:
    logits = spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab + rows))
    return logits if decimals is None else logits.round(decimals=decimals)  # rounded logits tie


@settings(deadline=None, max_examples=40)
@given(
    st.lists(PARAMS, min_size=1, max_size=4),
    st.sampled_from([7, 300, 3000]),
    st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    st.sampled_from([None, 0, 1]),
)
def test_the_filters_keep_what_transformers_keep(params, vocab, spread, decimals):
    rows, logits = sequences(*params), logits_of(len(params), vocab, spread, decimals)
    # Sorted, for which of equal tokens are within `top_p` is nowhere said.
    expected = process(logits.clone(), rows, FILTERS).softmax(-1).sort().values
    found = filtered(logits, step_of(rows).draws).softmax(-1).sort().values
    # A token at the edge of `min_p` may be on either side of it: its probability is rounded.
    edges = torch.tensor([[p.min_p] for p in params]) * expected[:, -1:]
    by_rounding = ((torch.maximum(expected, found) - edges).abs() < 1e-6).any(-1)
    assert (((expected - found).abs() < 1e-6).all(-1) | by_rounding).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(PARAMS, min_size=1, max_size=4), st.sampled_from([7, 300, 3000]), st.sampled_from([1.0, 4.0]))
def test_the_token_is_the_one_the_session_draws(params, vocab, spread):
    rows, logits = sequences(*params), logits_of(len(params), vocab, spread)
    found = drawn(logits, step_of(rows).draws)
    ends = process(logits.clone(), rows, FILTERS).softmax(-1).cumsum(-1, dtype=torch.float64)
    numbers = torch.tensor([row.random.coming(1) for row in rows], dtype=torch.float64) * ends[:, -1:]
    by_rounding = (ends - numbers).abs().amin(-1) < 1e-6
    assert ((found == choose(logits, rows)) | by_rounding).all()


@pytest.mark.parametrize("name", FILTERS)
def test_there_is_a_form_for_devices_of_every_filter(name):
    logits, value = logits_of(1, 50, 4.0), {"top_k": 2}.get(name, 0.5)
    everything, one = (step_of(sequences(replace(ALL, **given))).draws for given in ({}, {name: value}))
    assert not torch.equal(filtered(logits, everything), filtered(logits, one))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_waits_for_the_logits_and_no_shape_depends_on_them(device):
    """As a capture demands: tensors without memory have nothing to wait for."""
    inputs = step_of(sequences(ALL, replace(ALL, min_p=0.1), Sampling(top_k=3)))
    inputs = replace(inputs, draws=inputs.draws.to(device))
    joined = RankLogits(Mapping(), 0, 50, ReferenceOps(), is_local=False).join(logits_of(3, 50, 4.0).to(device), inputs)
    assert (joined.shape, joined.dtype, joined.device.type) == ((3, 2), torch.float32, device)


def test_many_rows_are_drawn_in_parts():
    rows, logits = (
        sequences(*(replace(ALL, random_seed=seed) for seed in range(2 * ROWS_AT_ONCE + 3))),
        torch.zeros(1, 9),
    )
    together = drawn(logits.expand(len(rows), -1), step_of(rows).draws)
    assert together.tolist() == [int(drawn(logits, step_of([row]).draws)) for row in rows]


def test_who_takes_the_largest_takes_the_first_of_them():
    rows = sequences(GREEDY, ALL, Sampling(temperature=0, top_k=5))
    logits = torch.tensor([0.0, 7, 7, -1, 7]).repeat(3, 1)
    assert drawn(logits, step_of(rows).draws)[[0, 2]].tolist() == [1, 1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_numbers_at_both_ends_find_a_token_that_is_possible(uniform):
    draws = torch.tensor([[1.0, 0, 1, 0, uniform, 0]], dtype=torch.float64)
    assert drawn(torch.tensor([[-1e30, 1, -1e30, 1, -1e30]]), draws).item() in (1, 3)


def test_a_row_that_is_not_a_number_draws_a_token_there_is_and_is_seen():
    decoder = sum_decoder(AtOnce())
    rows = sequences(ALL, ALL)
    logits = torch.tensor([[0.0, torch.nan, 1], [0, 1, 2]])
    assert 0 <= drawn(logits, step_of(rows).draws)[0] < 3
    decoder.forward.model.programs["head_1"].run = lambda inputs: torch.full((1, 16), torch.nan)
    with pytest.raises(UserError, match="expected finite logits, the decoder returned nan"):
        generate(session_of(decoder), [Request((1, 3), 3, sampling=ALL)])


def test_looking_at_numbers_uses_none_of_them_up():
    numbers, same = RandomNumbers("7/0"), Random("7/0")
    expected = [same.random() for _ in range(5)]
    assert numbers.coming(2) == tuple(expected[:2]) == numbers.coming(2)
    assert [numbers.random(), *numbers.coming(3)] == expected[:4]
    assert [numbers.random() for _ in range(4)] == expected[1:]


DRAWN = [
    ALL, Sampling(top_k=4), GREEDY, Sampling(top_k=0, top_p=0.8, temperature=2.0),
    Sampling(top_k=9, min_p=0.2), replace(ALL, sequence=1),
]  # fmt: skip


def requests() -> list[Request]:
    return [Request((n, 3), 5 + 2 * n, end_id=0, sampling=params) for n, params in enumerate(DRAWN)]


def test_requests_draw_the_same_on_the_gpu_and_on_the_cpu():
    """More than the batch holds, so that they wait, join and end while steps were begun with the next numbers."""
    on_cpu = sum_decoder(AtOnce())
    on_cpu.spec = replace(on_cpu.spec, draws=False)
    expected = [r.output_ids for r in generate(session_of(on_cpu), requests())]
    assert [r.output_ids for r in generate(session_of(sum_decoder(Later())), requests())] == expected


def test_drawn_tokens_stay_on_the_gpu_between_steps():
    captured: list[Rerun] = []
    decoder = sum_decoder(AtOnce(), captured)
    generate(session_of(decoder), [Request((1, 3), 9, sampling=params) for params in DRAWN[:4]])
    assert [one.replays for one in captured] == [8] and list(predictions(decoder)) == [False] * 8


@pytest.mark.parametrize(
    "whole", [replace(ALL, repetition_penalty=1.3), replace(ALL, log_probs=0), Sampling(num_beams=2)]
)
def test_what_needs_whole_logits_has_them_for_all(whole):
    asked = step_of(sequences(ALL, whole))
    assert asked.draws is None and not asked.chooses


def test_a_prompt_that_has_not_ended_draws_nothing():
    first, second = sequences(ALL, ALL)
    part = TokenSequence(2, Request((1, 2, 3), 9, sampling=ALL), blocks=(1,))
    inputs = step_inputs([first.chunk(1), part.chunk(2), second.chunk(1)], spec(draws=True))
    assert inputs.draws.shape == (2, 6) and inputs.last_token_ids.tolist() == [0, 3]
    assert step_inputs([part.chunk(2)], spec(draws=True)).draws is None
    assert step_inputs([first.chunk(1)], spec()).draws is None  # a decoder that does not
