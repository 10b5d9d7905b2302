"""What a rank has of the others: its place in a pipeline, its tensor-parallel group, and who is on its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from opt_trt.ops import Collectives

NCCL, GLOO = "nccl", "gloo"


class StageLink(Protocol):
    """The links of one rank: from its place in the stage before, to its place in the next."""

    is_first: bool
    is_last: bool

    def expect(self, tokens: int, features: int) -> Any:
        """Hidden states [T, E] of the stage before, to be received later: they may come meanwhile."""
        ...

    def receive(self, coming: Any) -> torch.Tensor:
        """What was expected, where programs read it."""
        ...

    def send(self, x: torch.Tensor) -> None:
        """Hidden states to the next stage; returns before they have arrived."""
        ...

    def progress(self) -> None:
        """Let messages move."""
        ...

    def answer(self, found: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """A step's outputs of these shapes: rank 0 gets those the last stage gives here; no rows for who has none."""
        ...


@dataclass(frozen=True)
class Seat:
    """The GPU of a rank."""

    host: str
    index: int  # among those this process sees
    unique: str  # the same for all processes that see it

    def __str__(self) -> str:
        return f"GPU {self.index} of {self.host}"


@dataclass(frozen=True)
class Seats:
    """The GPUs of all ranks."""

    ranks: tuple[Seat, ...]

    def sharers(self, rank: int) -> int:
        """Ranks on the GPU of one of them, itself included."""
        return sum(seat.unique == self.ranks[rank].unique for seat in self.ranks)

    @property
    def library(self) -> str:
        """What sums."""
        return NCCL if all(self.sharers(rank) == 1 for rank in range(len(self.ranks))) else GLOO

    def __str__(self) -> str:
        placed = ", ".join(f"rank {rank} on {seat}" for rank, seat in enumerate(self.ranks))
        if self.library == NCCL:
            return f"{placed}; sums by NCCL"
        return (
            f"{placed}; ranks that share a GPU exchange sums through the host, which is slow: "
            "start them where each has a GPU of its own"
        )


@dataclass(frozen=True)
class Joined:
    """What a rank has of the others, and they of it."""

    rank: int
    seats: Seats
    collectives: Collectives
    link: StageLink

    @property
    def sharers(self) -> int:
        """Ranks on this rank's GPU."""
        return self.seats.sharers(self.rank)

    @property
    def is_capturable(self) -> bool:
        """Whether sums may be part of a CUDA graph."""
        return self.seats.library == NCCL
