"""Sums and gathers of tensor-parallel ranks by torch's own operators, which compiled programs may contain.

They find their group by a name that holds only its size, so one program serves the groups of all stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch._C._distributed_c10d import _register_process_group, _unregister_process_group
from torch.distributed.distributed_c10d import GroupName

functional = torch.ops._c10d_functional


class GroupCollectives:
    """`Collectives` of the group of `tp_size` ranks that this process has joined (`join_group`)."""

    def __init__(self, tp_size: int) -> None:
        self.tp_size = tp_size
        self._group = group_name(tp_size)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`; the library chooses the order of the sum, and every rank gets the same bits."""
        total: torch.Tensor = functional.wait_tensor(functional.all_reduce(x, "sum", self._group))
        return total

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        parts = functional.wait_tensor(functional.all_gather_into_tensor(x.contiguous(), self.tp_size, self._group))
        joined: torch.Tensor = parts.view(self.tp_size, -1, x.shape[1]).transpose(0, 1).flatten(1)
        return joined.narrow(1, 0, features)


def group_name(tp_size: int) -> GroupName:
    """Return the name that programs have for a group of `tp_size` ranks."""
    return GroupName(f"opt_trt_{tp_size}")


def join_group(group: distributed.ProcessGroup) -> None:
    """Give `group` its name for programs of this process; an earlier group of that size loses it."""
    name = group_name(group.size())
    _unregister_process_group(name)
    _register_process_group(name, group)


@contextmanager
def group_in_name_only(tp_size: int) -> Iterator[None]:
    """Register a group without other ranks while programs are compiled: the compiler asks only for its size."""
    name = group_name(tp_size)
    group = distributed.ProcessGroup(0, tp_size)  # type: ignore[call-arg]  # not in its stub
    _register_process_group(name, group)  # by a weak reference
    try:
        yield
    finally:
        _unregister_process_group(name)
