"""A step the GPU was given: what it has chosen, on the GPU for the next step and on the host for the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from opt_trt.step import StepInputs


class Done(Protocol):
    """The end of some work, as `torch.cuda.Event` is."""

    def synchronize(self) -> None:
        """Wait for it."""
        ...


Put = Callable[[Callable[[], object]], Done]  # let work be done behind all that was put before
Compute = Callable[[], tuple[torch.Tensor, torch.Tensor | None]]


class Launch:
    """A step that may not be over yet.

    Chosen tokens leave for the host as soon as they are there, into memory of their own, so that the next step may
    follow at once. Whole logits, which are large, are fetched when they are read, before there is another step.
    """

    def __init__(self, compute: Compute, inputs: StepInputs, put: Put) -> None:
        """`compute` gives what `RankLogits.join` does, of rows that fill the step up too, and hidden states."""
        self._joined: torch.Tensor = torch.empty(0)
        self._hidden: torch.Tensor | None = None
        self._arrived: torch.Tensor | None = None
        self._done = put(lambda: self._work(compute, inputs))  # which nobody keeps: it holds the step before

    @property
    def chosen(self) -> torch.Tensor:
        """The token of each row, fp32 `[L]` where it was computed; captured steps overwrite it."""
        return self._joined[:, 1]

    def read(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Wait for it: what `RankLogits.join` gives, `[L, width]`, and hidden states, on the CPU."""
        self._done.synchronize()
        joined = self._joined.cpu() if self._arrived is None else self._arrived
        return joined, None if self._hidden is None else self._hidden.cpu()

    def _work(self, compute: Compute, inputs: StepInputs) -> None:
        joined, self._hidden = compute()
        self._joined = joined[: len(inputs.last_token_ids)]
        if inputs.chooses:
            arrived = torch.empty(self._joined.shape, pin_memory=self._joined.device.type != "cpu")
            self._arrived = arrived.copy_(self._joined, non_blocking=True)
