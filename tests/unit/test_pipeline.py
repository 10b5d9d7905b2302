"""What passes between pipeline stages, with mailboxes in place of MPI."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from opt_trt.model.mapping import Mapping
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline, PipelineError

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
