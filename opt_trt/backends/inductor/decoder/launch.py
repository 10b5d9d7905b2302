"""A step that the GPU was given; the tokens that it chooses go to the next step on the GPU, and to the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from opt_trt.backends.inductor.decoder.rank_forward import StageOutputs
from opt_trt.step import StepInputs


class Completion(Protocol):
    """The end of some work, as `torch.cuda.Event` is."""

    def synchronize(self) -> None:
        """Wait for it."""
        ...


Enqueue = Callable[[Callable[[], object]], Completion]  # have work done after all that was enqueued before


class Launch:
    """A step that may not be over yet.

    Chosen tokens are copied to the host as soon as they are computed, into memory of their own, so that the next step
    may follow at once. Whole logits are large: they are copied when they are read, before the next step is launched.
    """

    def __init__(self, compute: Callable[[], StageOutputs], inputs: StepInputs, enqueue: Enqueue) -> None:
        """Enqueue a step. `compute` may return more rows of logits than the step wants, which are padding."""
        self._logits: torch.Tensor = torch.empty(0)
        self._hidden: torch.Tensor | None = None
        self._arrived: torch.Tensor | None = None  # chosen tokens and their logits, on the host
        self._done = enqueue(lambda: self._work(compute, inputs))  # `compute` is not stored: it refers to the last step

    @property
    def chosen(self) -> torch.Tensor:
        """The token of each row, fp32 `[L]`, on the device of the step; captured steps overwrite it."""
        return self._logits[:, 1]

    def read(self) -> StageOutputs:
        """Wait for the step, and return its outputs on the CPU."""
        self._done.synchronize()
        logits = self._logits.cpu() if self._arrived is None else self._arrived
        return StageOutputs(logits, None if self._hidden is None else self._hidden.cpu())

    def _work(self, compute: Callable[[], StageOutputs], inputs: StepInputs) -> None:
        logits, self._hidden = compute()
        self._logits = logits[: len(inputs.last_token_ids)]
        if inputs.chooses:
            arrived = torch.empty(self._logits.shape, pin_memory=self._logits.device.type != "cpu")
            self._arrived = arrived.copy_(self._logits, non_blocking=True)
