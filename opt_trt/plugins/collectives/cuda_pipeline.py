"""Hand hidden states from the GPU of a pipeline stage to that of the next; answers go from host to host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import distributed

from opt_trt.model.mapping import Mapping
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline


@dataclass(frozen=True)
class Wire:
    """What hidden states are, and the memory they travel from: that of the GPU, or the host's."""

    dtype: torch.dtype
    device: str
    memory: str


class Coming(NamedTuple):
    """Hidden states that are expected: in place once the work is waited for."""

    work: distributed.Work
    x: torch.Tensor


class GpuPipeline:
    """`StageLink` of a rank that has joined the world of `torch.distributed`.

    Nothing waits on the host: what is received and sent takes its place among what the GPU has to do.
    """

    def __init__(self, mapping: Mapping, rank: int, wire: Wire, host: Pipeline) -> None:
        """`host` brings the answers, which the session reads there, to rank 0."""
        self.is_first, self.is_last = host.is_first, host.is_last
        self._before, self._next = rank - mapping.tp_size, rank + mapping.tp_size
        self._wire, self._host = wire, host
        self._sending: list[Coming] = []

    def expect(self, tokens: int, features: int) -> Coming:
        """Hidden states [T, E] of the stage before, to be received later: they may come meanwhile."""
        x = torch.empty(tokens, features, dtype=self._wire.dtype, device=self._wire.memory)
        return Coming(_started(distributed.irecv(x, self._before)), x)

    def receive(self, coming: Coming) -> torch.Tensor:
        """What was expected, for whatever the GPU is given to do from now on."""
        coming.work.wait()
        return coming.x.to(self._wire.device)

    def send(self, x: torch.Tensor) -> None:
        """Hidden states to the next stage."""
        x = x.to(self._wire.memory).contiguous()
        self._sending.append(Coming(_started(distributed.isend(x, self._next)), x))  # kept until it has arrived

    def progress(self) -> None:
        """Messages move by themselves."""

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """See `StageLink.answer`; nothing that was sent may change before this."""
        for coming in self._sending:
            coming.work.wait()
        self._sending.clear()
        answers = [tensor.cpu() for tensor in found]
        return answers if self.is_first and self.is_last else self._host.answer(answers, shapes)


def _started(work: distributed.Work | None) -> distributed.Work:
    assert work is not None, "this rank is of no group"
    return work
