"""Send hidden states from one pipeline stage to the next, and the outputs of the last stage to rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from opt_trt.host.waiting import Backoff, wait_until
from opt_trt.model.mapping import Mapping

if TYPE_CHECKING:
    from mpi4py import MPI

YIELDING_S = 1e-3  # how long a rank polls for a message without pauses
NAP_S = 5e-5  # the pause between polls from then on


class PipelineError(RuntimeError):
    """Another stage did not send or receive within the time given."""


class PendingMessage(NamedTuple):
    """A message that is expected."""

    request: MPI.Request
    x: torch.Tensor  # filled once the request is done
    source: int


class Pipeline:
    """`StageLink` of one rank, by MPI."""

    def __init__(self, world: MPI.Comm, mapping: Mapping, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._rank, self._tp_size = world.Get_rank(), mapping.tp_size
        stage = mapping.pp_rank(self._rank)
        self.is_first, self.is_last = stage == 0, stage == mapping.pp_size - 1
        self._output_rank = mapping.world_size - mapping.tp_size  # the rank of the last stage that sends its outputs
        self._sending: list[tuple[MPI.Request, torch.Tensor]] = []

    def expect(self, tokens: int, features: int) -> PendingMessage:
        """Begin to receive hidden states [T, E] of the stage before; see `StageLink.expect`."""
        return self._expect((tokens, features), self._rank - self._tp_size)

    def receive(self, pending: PendingMessage) -> torch.Tensor:
        """Wait for expected hidden states and return them."""
        self._wait(pending.request, f"rank {pending.source} sends nothing")
        return pending.x

    def send(self, x: torch.Tensor) -> None:
        """Send hidden states to the next stage; return before they have arrived."""
        self._give(x, self._rank + self._tp_size)

    def progress(self) -> None:
        """Let messages move: over a network, MPI moves large messages only while both sides call it."""
        self._world.Iprobe()

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """See `StageLink.answer`."""
        if self._rank == self._output_rank:
            for tensor in found:
                self._give(tensor, 0)
        elif self._rank == 0:
            found = [self.receive(self._expect(shape, self._output_rank)) for shape in shapes]
        for request, _ in self._sending:
            self._wait(request, "the next stage does not take its messages")
        self._sending.clear()
        return list(found) or [torch.empty(0, features) for _, features in shapes]

    def _give(self, x: torch.Tensor, to: int) -> None:
        x = x.contiguous()
        self._sending.append((self._world.Isend(x.numpy(), to), x))  # the tensor is kept until it has arrived

    def _expect(self, shape: tuple[int, int], source: int) -> PendingMessage:
        x = torch.empty(shape)
        return PendingMessage(self._world.Irecv(x.numpy(), source), x, source)

    def _wait(self, request: MPI.Request, problem: str) -> None:
        """Poll, as MPI's own wait does, but yield the core between polls."""
        if not wait_until(request.Test, Backoff(YIELDING_S, NAP_S, NAP_S, self._timeout_s)):
            raise PipelineError(f"rank {self._rank}: {problem} for {self._timeout_s:g} s")
