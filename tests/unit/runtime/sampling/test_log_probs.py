"""Log-probabilities are the model's own, of the tokens chosen and of the most likely ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.in_flight import generate, stream
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.log_probs import record
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import DecoderSession
from tests.unit._decoders import SumDecoder, spec

SPEC = spec(gather_context_logits=True, gather_generation_logits=True)
ONE_OF_16 = 1 - math.log(math.e + 15)  # SumDecoder gives one of its 16 tokens a logit of 1, the others 0


def recorded(logits: list[list[float]], token_ids: list[int], asked: list[int | None]) -> list[TokenSequence]:
    sequences = [TokenSequence(0, Request((1,), 1, sampling=Sampling(log_probs=n))) for n in asked]
    record(torch.tensor(logits), torch.tensor(token_ids), sequences)
    return sequences


def test_each_sequence_gets_as_many_alternatives_as_it_asked_for() -> None:
    half, quarter, eighth = (math.log(x) for x in (0.5, 0.25, 0.125))
    row = [eighth + 3, half + 3, eighth + 3, quarter + 3]
    nothing, own, two, all_of_them = recorded([row] * 4, [1, 3, 0, 1], [None, 0, 2, 99])
    assert nothing.log_probs == []
    assert [(t.log_prob, t.top) for t in own.log_probs] == [(pytest.approx(quarter), ())]
    [token] = two.log_probs
    assert (token.log_prob, [i for i, _ in token.top]) == (pytest.approx(eighth), [1, 3])
    assert [p for _, p in token.top] == pytest.approx([half, quarter])
    assert math.fsum(math.exp(p) for _, p in all_of_them.log_probs[0].top) == pytest.approx(1.0)


def test_nobody_asks_nothing_is_recorded() -> None:
    assert recorded([[1.0, 2.0]], [1], [None])[0].log_probs == []


def test_a_result_has_one_for_every_new_token_and_their_sum() -> None:
    asks, does_not = (Request((1, 3), 4, sampling=Sampling(log_probs=n)) for n in (1, None))
    result, without = generate(DecoderSession(SumDecoder(SPEC), KvCacheLimit()), [asks, does_not])
    assert [t.log_prob for t in result.log_probs] == pytest.approx([ONE_OF_16] * 4)
    assert [t.top[0][0] for t in result.log_probs] == list(result.output_ids)
    assert result.cum_log_prob == pytest.approx(4 * ONE_OF_16)
    assert without.log_probs == () and without.output_ids == result.output_ids


def test_penalties_and_temperature_do_not_change_them() -> None:
    params = Sampling(temperature=0.1, top_k=3, repetition_penalty=5.0, log_probs=0, random_seed=1)
    request = Request((1, 3), 6, sampling=params, return_generation_logits=True)
    [result] = generate(DecoderSession(SumDecoder(SPEC), KvCacheLimit()), [request])
    assert result.generation_logits is not None
    scores = result.generation_logits.log_softmax(-1)
    expected = [float(scores[n, token_id]) for n, token_id in enumerate(result.output_ids)]
    assert [t.log_prob for t in result.log_probs] == expected


def test_a_stream_brings_them_with_the_tokens() -> None:
    request = Request((1, 3), 3, sampling=Sampling(log_probs=1))
    of = DecoderSession(SumDecoder(SPEC), KvCacheLimit())
    [result] = generate(of, [request])
    assert tuple(event.log_probs for event in stream(of, [request])) == result.log_probs
    assert [e.log_probs for e in stream(of, [replace(request, sampling=Sampling())])] == [None] * 3
