"""Pipeline stages hand on hidden states and compute with them; queues stand in for MPI."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from opt_trt.backends.engine import EngineConfig, Limits
from opt_trt.backends.inductor.decoder.loading import RankModel
from opt_trt.backends.inductor.decoder.pipeline import gather_outputs, run_stage
from opt_trt.backends.inductor.decoder.rank_forward import RankForward
from opt_trt.backends.inductor.decoder.rank_logits import RankLogits
from opt_trt.model.config import ModelConfig
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline, PipelineError
from opt_trt.step import StepInputs
from tests.unit._engines import MODEL

Mailboxes = dict[tuple[int, int], deque[Any]]  # by sender and receiver


class Message:
    """A request: of a message sent, which has arrived, or of one that is waited for."""

    def __init__(self, mailbox: deque[Any], buffer: Any = None) -> None:
        self._mailbox, self._buffer = mailbox, buffer

    def Test(self) -> bool:  # MPI's name
        if self._buffer is None:
            return True
        if self._mailbox:
            self._buffer[...] = self._mailbox.popleft()
            return True
        return False


class Comm:
    """One rank's end of the mailboxes."""

    def __init__(self, rank: int, mailboxes: Mailboxes) -> None:
        self._rank, self._mailboxes = rank, mailboxes

    def Get_rank(self) -> int:
        return self._rank

    def Isend(self, values: Any, to: int) -> Message:
        mailbox = self._mailboxes.setdefault((self._rank, to), deque())
        mailbox.append(values.copy())
        return Message(mailbox)

    def Irecv(self, buffer: Any, source: int) -> Message:
        return Message(self._mailboxes.setdefault((source, self._rank), deque()), buffer)


def links(mapping: Mapping, timeout_s: float = 30.0) -> list[Pipeline]:
    """The pipelines of all ranks."""
    mailboxes: Mailboxes = {}
    return [Pipeline(Comm(rank, mailboxes), mapping, timeout_s) for rank in range(mapping.world_size)]


def arrived(rank: Pipeline, tokens: int, features: int) -> torch.Tensor:
    return rank.receive(rank.expect(tokens, features))


def test_hidden_states_go_to_the_same_place_in_the_next_stage() -> None:
    ranks = links(Mapping(6, tp_size=2, pp_size=3))
    for first in range(4):
        ranks[first].send(torch.full((2, 3), float(first)))
        assert arrived(ranks[first + 2], 2, 3).tolist() == [[first] * 3] * 2


def test_parts_of_a_step_arrive_in_their_order() -> None:
    first, second = links(Mapping(2, pp_size=2))
    for part in range(3):
        first.send(torch.full((1, 2), float(part)))
    assert [arrived(second, 1, 2)[0, 0].item() for _ in range(3)] == [0, 1, 2]


def test_what_is_expected_before_it_is_sent_arrives_in_order() -> None:
    first, second = links(Mapping(2, pp_size=2))
    expected = [second.expect(1, 2) for _ in range(3)]
    for part in range(3):
        first.send(torch.full((1, 2), float(part)))
    assert [second.receive(arriving)[0, 0].item() for arriving in expected] == [0, 1, 2]


def test_rank_0_gets_the_outputs_of_the_last_stages_first_rank_and_others_no_rows() -> None:
    ranks = links(Mapping(6, tp_size=2, pp_size=3))
    logits = {rank: torch.full((2, 5), float(rank)) for rank in (4, 5)}  # the last stage
    found = {rank: [logits, logits[:1, :3]] for rank, logits in logits.items()}
    answers = {rank: ranks[rank].answer(found.get(rank, []), [(2, 5), (1, 3)]) for rank in (5, 4, 3, 2, 1, 0)}
    assert answers[0][1].tolist() == [[4.0] * 3]
    assert answers[0][0].tolist() == [[4.0] * 5] * 2
    assert [[t.shape for t in answers[rank]] for rank in (1, 2, 3)] == [[(0, 5), (0, 3)]] * 3


def test_the_ends_of_a_pipeline_know_that_they_are() -> None:
    ranks = links(Mapping(6, tp_size=2, pp_size=3))
    assert [rank.is_first for rank in ranks] == [True] * 2 + [False] * 4
    assert [rank.is_last for rank in ranks] == [False] * 4 + [True] * 2


def test_a_stage_that_sends_nothing_is_named() -> None:
    ranks = links(Mapping(2, pp_size=2), timeout_s=0.01)
    with pytest.raises(PipelineError, match=r"rank 1: rank 0 sends nothing for 0\.01 s"):
        arrived(ranks[1], 1, 4)


class Embedding:
    """Token ids as hidden states of 8 features."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return inputs[0].float()[:, None].expand(-1, 8).contiguous()


class Layer:
    """Adds the layer's only weight."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return inputs[0] + inputs[1]


class Head:
    """The wanted hidden states, twice, as logits of 16 tokens."""

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return inputs[0][inputs[1]].repeat(1, 2)


def stage_forward(stage: int, placed: list[int], progressed: list[int]) -> RankForward:
    """The forward pass of a stage of two, which has one of two layers; notes parts as they are placed."""
    programs = {"embedding": Embedding(), "layer": Layer(), "head": Head()}
    model = RankModel(programs, [], [[torch.tensor(10.0 ** (stage + 2))]], [])
    mapping = Mapping(2, pp_size=2)
    config = ModelConfig.from_dict(
        MODEL | {"do_layer_norm_before": False, "mapping": {"world_size": 2, "tp_size": 1, "pp_size": 2}}, "here"
    )
    engine = EngineConfig(config, Limits(8, 8, 16, 16, 4, False, False), "inductor", {}, "", {}, "")

    def place(inputs: StepInputs) -> StepInputs:
        placed.append(len(inputs.input_ids))
        return inputs

    return RankForward(
        engine, model, RankLogits(mapping, stage, 16, ReferenceOps()), rank=stage,
        place=place, after_layer=lambda: progressed.append(stage),
    )  # fmt: skip


def part_of(tokens: list[int], wanted: list[int], hidden: list[int] | None = None) -> StepInputs:
    ids, rest = torch.tensor(tokens), [torch.empty(0)] * 5
    named = None if hidden is None else torch.tensor(hidden, dtype=torch.long)
    return StepInputs(ids, *rest, torch.tensor(wanted, dtype=torch.long), hidden_token_ids=named)


def test_a_stage_computes_parts_in_their_order_and_rank_0_gets_the_outputs_of_all() -> None:
    ends, caches = links(Mapping(2, pp_size=2)), [torch.empty(0)]
    parts = [part_of([1, 2], [], []), part_of([3], [0], [0]), part_of([4, 5, 6], [2, 0], [1])]
    whole = part_of([1, 2, 3, 4, 5, 6], [2, 5, 3], [2, 4])
    placed, progressed = [], []
    forwards = [stage_forward(stage, placed, progressed) for stage in (0, 1)]
    assert run_stage(forwards[0], ends[0], parts, caches) == []
    found = run_stage(forwards[1], ends[1], parts, caches)
    assert placed == [2, 1, 3] * 2 and progressed == [0] * 3 + [1] * 3
    last = gather_outputs(forwards[1], ends[1], found, whole)
    first = gather_outputs(forwards[0], ends[0], [], whole)
    for outputs in (last, first):
        assert outputs.logits.tolist() == [[1100.0 + token] * 16 for token in (3, 6, 4)]
        assert outputs.hidden.tolist() == [[1100.0 + token] * 8 for token in (3, 5)]
