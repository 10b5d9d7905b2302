"""Activations that overflow in one sequence reach no other, in the same batch or later in the same memory."""

from __future__ import annotations

import pytest
import torch

from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.runtime.sequence import TokenSequence
from tests.engine._eager import eager_session
from tests.engine.conftest import random_prompts

CURSED = 20  # the first position whose embedding is NaN


@pytest.fixture(scope="module", params=["pre-norm", "library"])
def cursed(open_eager, request):
    decoder = open_eager(request.param).executor.decoder
    session = eager_session(decoder.checkpoint, decoder.plan)
    table = session.executor.decoder.weights["transformer.position_embedding.weight"]
    table[CURSED:] = torch.nan
    return session


@pytest.mark.parametrize("count", [2, 30])
def test_bystanders_get_what_they_get_alone(cursed, count):
    short = [Request(prompt, 6) for prompt in random_prompts((3, 5, 9, 13))]
    alone = [generate(cursed, [request])[0].output_ids for request in short]
    assert all(len(ids) == 6 for ids in alone)
    long = [Request(prompt, 6) for prompt in random_prompts((CURSED + 12, CURSED - 3, CURSED + 1) * count)][:count]
    sequences = [TokenSequence(index, r) for index, r in enumerate([*long, *short, *long, *short])]
    for sequence in sequences:
        cursed.in_flight.submit(sequence)
    while any(sequence.finish_reason is None for sequence in sequences):
        cursed.in_flight.step()
    for start in (count, 2 * count + len(short)):
        assert [tuple(s.output_ids) for s in sequences[start : start + len(short)]] == alone
    failed = [s for s in sequences if s.request in long]
    assert len(failed) >= count and all(isinstance(s.error, RequestFailed) for s in failed)
    assert [generate(cursed, [request])[0].output_ids for request in short] == alone
