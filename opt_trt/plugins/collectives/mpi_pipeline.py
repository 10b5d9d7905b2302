"""Hand hidden states from pipeline stage to stage, and what the last one computes of them to rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from opt_trt.host.waiting import Patience, wait_until
from opt_trt.model.mapping import Mapping

if TYPE_CHECKING:
    from mpi4py import MPI

YIELDING_S, NAP_S = 1e-3, 5e-5  # how long a rank looks for a message without a pause, and the pause from then on


class PipelineError(RuntimeError):
    """Another stage did not come within the time given."""


class Arriving(NamedTuple):
    """A message that is expected."""

    request: MPI.Request
    x: torch.Tensor  # filled once the request is done
    source: int


class Pipeline:
    """The links of one rank: from its place in the stage before, to its place in the next."""

    def __init__(self, world: MPI.Comm, mapping: Mapping, timeout_s: float) -> None:
        self._world, self._timeout_s = world, timeout_s
        self._rank, self._tp_size = world.Get_rank(), mapping.tp_size
        stage = mapping.pp_rank(self._rank)
        self.is_first, self.is_last = stage == 0, stage == mapping.pp_size - 1
        self._speaker = mapping.world_size - mapping.tp_size  # the rank of the last stage whose logits count
        self._sending: list[tuple[MPI.Request, torch.Tensor]] = []

    def expect(self, tokens: int, features: int) -> Arriving:
        """Hidden states [T, E] of the stage before, to be received later: they may come meanwhile."""
        return self._expect((tokens, features), self._rank - self._tp_size)

    def receive(self, arriving: Arriving) -> torch.Tensor:
        """What was expected, once it is here."""
        self._wait(arriving.request, f"rank {arriving.source} sends nothing")
        return arriving.x

    def send(self, x: torch.Tensor) -> None:
        """Hidden states to the next stage; returns before they have arrived."""
        self._give(x, self._rank + self._tp_size)

    def progress(self) -> None:
        """Let messages move: over a network MPI moves large ones only while it is called, on either side."""
        self._world.Iprobe()

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """A step's outputs of these shapes: rank 0 gets those the last stage gives here; no rows for who has none."""
        if self._rank == self._speaker:
            for tensor in found:
                self._give(tensor, 0)
        elif self._rank == 0:
            found = [self.receive(self._expect(shape, self._speaker)) for shape in shapes]
        for request, _ in self._sending:
            self._wait(request, "the next stage does not take its messages")
        self._sending.clear()
        return list(found) or [torch.empty(0, features) for _, features in shapes]

    def _give(self, x: torch.Tensor, to: int) -> None:
        x = x.contiguous()
        self._sending.append((self._world.Isend(x.numpy(), to), x))  # the tensor is kept until it has arrived

    def _expect(self, shape: tuple[int, int], source: int) -> Arriving:
        x = torch.empty(shape)
        return Arriving(self._world.Irecv(x.numpy(), source), x, source)

    def _wait(self, request: MPI.Request, problem: str) -> None:
        """Poll, as MPI's own waiting would, but leave the core to others meanwhile."""
        if not wait_until(request.Test, Patience(YIELDING_S, NAP_S, NAP_S, self._timeout_s)):
            raise PipelineError(f"rank {self._rank}: {problem} for {self._timeout_s:g} s")
