"""Send hidden states from the GPU of a pipeline stage to that of the next; outputs go from host to host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import distributed

from opt_trt.model.mapping import Mapping
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline


@dataclass(frozen=True)
class StateFormat:
    """The type of hidden states, the device that uses them, and the memory that they are sent from and received in."""

    dtype: torch.dtype
    device: str
    memory: str


class PendingStates(NamedTuple):
    """Hidden states that are expected; `x` holds them after `work.wait()`."""

    work: distributed.Work
    x: torch.Tensor


class GpuPipeline:
    """`StageLink` of a rank that has joined the world of `torch.distributed`.

    The host does not wait: receiving and sending are queued on the GPU with its other work.
    """

    def __init__(self, mapping: Mapping, rank: int, state_format: StateFormat, host: Pipeline) -> None:
        """Link the stages; `host` sends the outputs to rank 0, where the session reads them."""
        self.is_first, self.is_last = host.is_first, host.is_last
        self._before, self._next = rank - mapping.tp_size, rank + mapping.tp_size
        self._format, self._host = state_format, host
        self._sending: list[PendingStates] = []

    def expect(self, tokens: int, features: int) -> PendingStates:
        """Begin to receive hidden states [T, E] of the stage before; see `StageLink.expect`."""
        x = torch.empty(tokens, features, dtype=self._format.dtype, device=self._format.memory)
        return PendingStates(_started(distributed.irecv(x, self._before)), x)

    def receive(self, pending: PendingStates) -> torch.Tensor:
        """Return expected hidden states; work that the GPU gets from now on may use them."""
        pending.work.wait()
        return pending.x.to(self._format.device)

    def send(self, x: torch.Tensor) -> None:
        """Send hidden states to the next stage."""
        x = x.to(self._format.memory).contiguous()
        self._sending.append(
            PendingStates(_started(distributed.isend(x, self._next)), x)
        )  # the tensor is kept until it has arrived

    def progress(self) -> None:
        """Do nothing: messages move by themselves."""

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """See `StageLink.answer`; tensors that were sent must not change before this call."""
        for pending in self._sending:
            pending.work.wait()
        self._sending.clear()
        answers = [tensor.cpu() for tensor in found]
        return answers if self.is_first and self.is_last else self._host.answer(answers, shapes)


def _started(work: distributed.Work | None) -> distributed.Work:
    assert work is not None, "this rank is of no group"
    return work
