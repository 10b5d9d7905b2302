"""Compiled programs give the same ids however a prompt is cut, whatever is reused, and with any number of beams."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from opt_trt.config.sampling import Sampling
from opt_trt.config.scheduling import POLICIES, Scheduling
from opt_trt.host.workers import one_thread
from opt_trt.runtime.generate import result_of
from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.scheduling.kv_cache import KvCacheLimit
from opt_trt.runtime.session import DecoderSession
from tests.engine._oracle import assert_same_or_tie, reference_ids
from tests.engine._random_requests import (
    SMALL_CACHE,
    TRACEABLE,
    assert_explained,
    assert_same_beams,
    random_requests,
    run_alone,
    run_together,
)
from tests.engine.conftest import KINDS, random_prompts

TIE = 1e-4  # beams whose scores are closer than this may swap between two orders of summation


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_reuse_and_starting_over_change_no_ids(kind, open_session, oracle):
    decoder = open_session(kind).executor.decoder
    crowded = DecoderSession(decoder, KvCacheLimit(max_tokens=256), Scheduling("max_utilization", 5, True))
    requests = [Request(prompt, 20) for prompt in random_prompts((70, 3, 64, 33, 9, 50, 1))]
    for _ in range(2):
        for request, result in zip(requests, generate(crowded, requests), strict=True):
            assert_same_or_tie(list(result.output_ids), *reference_ids(oracle(kind), request.prompt_ids, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_beams_equal_transformers(kind, open_session, oracle):
    model, session = oracle(kind), open_session(kind)
    widths = (2, 3, 5, 8)
    requests = [
        Request(prompt, 12, sampling=Sampling(num_beams=width))
        for width, prompt in zip(widths, random_prompts((31, 5, 64, 1)), strict=True)
    ]
    for request, result in zip(requests, generate(session, requests), strict=True):
        width = request.sampling.num_beams
        expected = model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=12, num_beams=width, num_return_sequences=width,
            do_sample=False, eos_token_id=None, pad_token_id=1, early_stopping=True,
        )[:, len(request.prompt_ids) :].tolist()  # fmt: skip
        tied = any(a.score - b.score < TIE for a, b in pairwise(result.beams))
        assert tied or [list(beam.output_ids) for beam in result.beams] == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_other_requests_change_ids_only_at_ties(open_session, policy):
    alone, arrivals = open_session("pre-norm"), random_requests(2, ways=TRACEABLE)
    crowded = DecoderSession(alone.executor.decoder, SMALL_CACHE, Scheduling(policy, 24, True))
    with one_thread():  # thousands of steps of 1 ms: two threads would wait for each other on a busy machine
        shared, answers = run_together(crowded, arrivals), run_alone(alone, arrivals, logits=True)
    for sequence, expected in zip(shared.sequences, answers, strict=True):
        if sequence.finish_reason == "cancelled":
            expected = replace(expected, output_ids=expected.output_ids[: len(sequence.output_ids)], beams=())
        if expected.beams:
            assert_same_beams(result_of(sequence), expected)
        else:
            assert_explained(sequence.output_ids, expected, sequence.request)
