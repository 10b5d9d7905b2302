"""Sums and gathers of tensor-parallel ranks by the plugin library."""

from __future__ import annotations

import torch

from opt_trt.plugins.cpu.operators import Operators


class NativeCollectives:
    """`Collectives` of the group of `tp_size` ranks that this process has joined (`collectives.cpu.join`)."""

    def __init__(self, operators: Operators, tp_size: int) -> None:
        self._operators = operators
        self._tp_size = tp_size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`; parts are added in the order of the ranks."""
        return self._operators.all_reduce(x, self._tp_size)

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        return self._operators.all_gather(x, self._tp_size, features)
