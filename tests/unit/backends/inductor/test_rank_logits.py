"""Logits of the parts of a vocabulary, joined: the largest of all is the first one, wherever it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.runtime.request import Request
from opt_trt.runtime.sampling.choose import choose
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.step import StepInputs
from tests.unit._rank_decoder import Threads


def of_ranks(mapping: Mapping) -> list[RankLogits]:
    """All tensor-parallel ranks of a vocabulary of five."""
    threads = Threads(mapping.tp_size)
    return [RankLogits(mapping, rank, 5, threads.ops(rank)) for rank in range(mapping.tp_size)]


def step(greedy: bool) -> StepInputs:
    return StepInputs(*[torch.empty(0)] * 7, greedy=greedy)


@pytest.mark.parametrize(
    ("logits", "token_id"),
    [
        ([1, 7, 7, 7, 7], 1),  # ties within a rank and between ranks: the first token
        ([-3, -2, -3, -2, -4], 1),  # padding, whose logits are 0, is no token
        ([-9, -9, -9, -9, -8], 4),
    ],
)
def test_the_largest_logit_of_all_ranks_is_the_first_one(logits, token_id):
    """Five tokens on three ranks of two columns each."""
    columns = torch.tensor([*logits, 0]).float().view(3, 1, 2)
    ranks, inputs = of_ranks(Mapping(3, tp_size=3)), step(greedy=True)
    with ThreadPoolExecutor(3) as pool:
        joined = list(pool.map(lambda rank, part: rank.join(part.clone(), inputs), ranks, columns))
    for rank, numbers in zip(ranks, joined, strict=True):
        assert numbers.shape == (1, rank.width(inputs))
        outputs = rank.outputs(numbers, inputs, None)
        assert outputs.token_ids[0, outputs.logits.argmax()] == token_id


def test_a_rank_that_is_not_a_number_is_seen():
    columns = torch.tensor([[[1.0, 2]], [[torch.nan, 5]], [[6.0, 0]]])
    ranks, inputs = of_ranks(Mapping(3, tp_size=3)), step(greedy=True)
    with ThreadPoolExecutor(3) as pool:
        joined = list(pool.map(lambda rank, part: rank.join(part.clone(), inputs), ranks, columns))
    sequence = TokenSequence(0, Request((1,), 9))
    choose(ranks[0].outputs(joined[0], inputs, None).logits, [sequence])
    assert "expected finite logits, the decoder returned nan" in str(sequence.error)


def test_one_rank_leaves_its_logits_as_they_are():
    (rank,), logits = of_ranks(Mapping()), torch.randn(1, 5)
    outputs = rank.outputs(rank.join(logits, step(greedy=True)), step(greedy=True), None)
    assert outputs.logits is logits and outputs.token_ids is None


def test_nobody_waits_for_a_gpu_within_a_step():
    """As a capture demands: tensors without memory have nothing to wait for."""
    logits, inputs = RankLogits(Mapping(), 0, 5, ReferenceOps(), is_local=False), step(greedy=True)
    joined = logits.join(torch.empty(3, 5, device="meta"), inputs)
    assert (joined.shape, joined.dtype, joined.device.type) == ((3, 2), torch.float32, "meta")
