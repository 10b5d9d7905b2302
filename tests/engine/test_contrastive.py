"""Contrastive search over compiled programs: their hidden states are transformers', and so are the ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import Scheduling
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.engine._oracle import assert_same_or_tie, reference_ids
from tests.engine.conftest import DETERMINISTIC, KINDS, random_prompts
from tests.unit import _contrastive

TOLERANCE = 1e-4  # of the length of a hidden state: fp32 sums in another order


@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_the_definition_among_greedy_requests(kind, open_session, oracle):
    model, decoder = oracle(kind), open_session(kind).executor.decoder
    session = DecoderSession(decoder, KvCacheLimit(max_tokens=2048), Scheduling("max_utilization", 7, True))
    prompts = random_prompts((31, 5, 64, 1))
    searches = [
        Request(prompt, 12, sampling=Sampling(penalty_alpha=alpha, top_k=k, no_repeat_ngram_size=2))
        for prompt, alpha, k in zip(prompts, (0.6, 0.3, 0.9, 1.0), (4, 8, 2, 5), strict=True)
    ]
    results = generate(session, [*searches, *(Request(prompt, 12) for prompt in prompts)])
    for request, result in zip(searches, results, strict=False):
        _contrastive.assert_same_or_tie(result.output_ids, _contrastive.contrastive_search(model, request))
    for prompt, result in zip(prompts, results[len(searches) :], strict=True):
        assert_same_or_tie(list(result.output_ids), *reference_ids(model, prompt, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_equal_transformers(kind, open_session, oracle, monkeypatch):
    decoder, seen = open_session(kind).executor.decoder, []
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda *given: seen.append(step(*given)) or seen[-1])
    [prompt] = random_prompts((40,))
    session = DecoderSession(decoder, KvCacheLimit(max_tokens=512))
    generate(session, [Request((1, 2, 3), 1), Request(prompt, 1, sampling=Sampling(penalty_alpha=0.5, top_k=2))])
    expected = _contrastive.forward(oracle(kind), [list(prompt)])[1][0]
    found = torch.cat([outputs.hidden for outputs in seen if outputs.hidden is not None])[: len(prompt)]
    assert ((found - expected).norm(dim=1) < TOLERANCE * expected.norm(dim=1)).all()


def test_a_deterministic_engine_gives_the_same_bits_alone_and_in_any_batch(open_session):
    session = open_session(DETERMINISTIC)
    search = Sampling(penalty_alpha=0.6, top_k=3)
    requests = [Request(p, 6, return_generation_logits=True) for p in random_prompts((3, 50, 1, 20, 64))]
    requests = [replace(r, sampling=search) if number % 2 else r for number, r in enumerate(requests)]
    for alone, together in zip([generate(session, [r])[0] for r in requests], generate(session, requests), strict=True):
        assert torch.equal(alone.generation_logits, together.generation_logits)
