"""A rank's links to the others: its pipeline stages, its tensor-parallel group, and the ranks that share its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from opt_trt.ops import Collectives

NCCL, GLOO = "nccl", "gloo"


class StageLink(Protocol):
    """The links of one rank: to its counterparts in the stage before and in the next stage."""

    is_first: bool
    is_last: bool

    def expect(self, tokens: int, features: int) -> Any:
        """Begin to receive hidden states [T, E] of the stage before; `receive` returns them later."""
        ...

    def receive(self, pending: Any) -> torch.Tensor:
        """Return expected hidden states, in the memory where programs read them."""
        ...

    def send(self, x: torch.Tensor) -> None:
        """Send hidden states to the next stage; return before they have arrived."""
        ...

    def progress(self) -> None:
        """Let messages move."""
        ...

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Send a step's outputs, of these shapes, from the last stage to rank 0; others get tensors without rows."""
        ...


@dataclass(frozen=True)
class RankGpu:
    """The GPU of a rank."""

    host: str
    index: int  # its number among the GPUs that this process sees
    unique: str  # the GPU's own identifier, the same for all processes

    def __str__(self) -> str:
        return f"GPU {self.index} of {self.host}"


@dataclass(frozen=True)
class GpuAssignment:
    """The GPUs of all ranks."""

    ranks: tuple[RankGpu, ...]

    def sharers(self, rank: int) -> int:
        """Return the number of ranks on the GPU of a rank, itself included."""
        return sum(gpu.unique == self.ranks[rank].unique for gpu in self.ranks)

    @property
    def library(self) -> str:
        """The library that sums: NCCL, or GLOO if ranks share a GPU."""
        return NCCL if all(self.sharers(rank) == 1 for rank in range(len(self.ranks))) else GLOO

    def __str__(self) -> str:
        placed = ", ".join(f"rank {rank} on {gpu}" for rank, gpu in enumerate(self.ranks))
        if self.library == NCCL:
            return f"{placed}; sums by NCCL"
        return (
            f"{placed}; ranks that share a GPU exchange sums through the host, which is slow: "
            "start them where each has a GPU of its own"
        )


@dataclass(frozen=True)
class RankLinks:
    """A rank, and its links to the others."""

    rank: int
    assignment: GpuAssignment
    collectives: Collectives
    link: StageLink

    @property
    def sharers(self) -> int:
        """The number of ranks on this rank's GPU."""
        return self.assignment.sharers(self.rank)

    @property
    def is_capturable(self) -> bool:
        """True if sums may be part of a CUDA graph."""
        return self.assignment.library == NCCL
