"""Sampling over a real engine: transformers' tokens and probabilities, whatever runs beside."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from opt_trt.config.sampling import Sampling
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from tests.engine.conftest import random_prompts

PROMPTS = random_prompts((3, 17, 1, 9))
NEW_TOKENS = 12
CHANCE = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}


def test_penalized_greedy_ids_equal_transformers(open_session, oracle):
    model = oracle("pre-norm")
    plain = model.generate(torch.tensor([PROMPTS[0]]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None)
    end_id, bad_id, *_ = dict.fromkeys(plain[0, len(PROMPTS[0]) :].tolist())  # what it would say, so that bans matter
    sampling = Sampling(
        repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words=((bad_id,), (5, 6)), min_length=NEW_TOKENS
    )
    request = partial(Request, max_new_tokens=NEW_TOKENS, end_id=end_id, sampling=sampling)
    results = generate(open_session("pre-norm"), [request(prompt) for prompt in PROMPTS])
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end_id, pad_token_id=1,
            repetition_penalty=1.3, no_repeat_ngram_size=2, bad_words_ids=[[bad_id], [5, 6]], min_new_tokens=NEW_TOKENS,
        )  # fmt: skip
        assert list(result.output_ids) == expected[0, len(prompt) :].tolist()


def test_log_probabilities_of_drawn_tokens_equal_transformers(open_session, oracle):
    model = oracle("pre-norm")
    sampling = Sampling(log_probs=3, random_seed=5, **CHANCE)
    for result in generate(open_session("pre-norm"), [Request(p, NEW_TOKENS, sampling=sampling) for p in PROMPTS]):
        whole = torch.tensor([(*result.prompt_ids, *result.output_ids)])
        scores = model(whole).logits[0, len(result.prompt_ids) - 1 : -1].log_softmax(-1)
        chosen = scores.gather(1, torch.tensor(result.output_ids).unsqueeze(1)).squeeze(1)
        # Both sides compute in fp32 and sum in another order.
        torch.testing.assert_close(torch.tensor([t.log_prob for t in result.log_probs]), chosen, rtol=0, atol=1e-4)
        best = torch.tensor([[p for _, p in token.top] for token in result.log_probs])
        torch.testing.assert_close(best, scores.topk(3).values, rtol=0, atol=1e-4)
        assert result.cum_log_prob == pytest.approx(chosen.sum().item(), abs=1e-3)


def test_drawn_tokens_are_those_of_the_request_alone(open_session):
    session = open_session("pre-norm")
    requests = [
        Request(prompt, NEW_TOKENS, sampling=Sampling(random_seed=seed, **CHANCE))
        for seed, prompt in enumerate(PROMPTS * 4)
    ]
    alone = [generate(session, [request])[0].output_ids for request in requests]
    assert [result.output_ids for result in generate(session, requests)] == alone
    assert len({ids for ids in alone[:: len(PROMPTS)]}) == 4  # the same prompt, four seeds
