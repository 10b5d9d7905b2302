"""The collectives plugin: what a rank's program asks of the other tensor-parallel ranks."""

from __future__ import annotations

import torch

from opt_trt.ops import ReferenceOps
from opt_trt.plugins.cpu.operators import Operators


class CollectiveOps(ReferenceOps):
    """Sums and gathers by the group of `tp_size` ranks this process has joined (`rendezvous.join`)."""

    def __init__(self, operators: Operators, tp_size: int) -> None:
        super().__init__()
        self.operators = operators
        self.tp_size = tp_size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.all_reduce`; parts are added in the order of the ranks."""
        return self.operators.all_reduce(x, self.tp_size)

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Ops.all_gather`."""
        return self.operators.all_gather(x, self.tp_size, features)
