"""What a rank of a pipeline stage has of those beside it, whatever carries their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


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
