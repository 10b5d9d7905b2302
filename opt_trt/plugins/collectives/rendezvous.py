"""Bring the ranks of a tensor-parallel group together: through memory they share, or through MPI across nodes."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import torch
from mpi4py import MPI

CHUNK_BYTES = 1 << 18  # of a long vector, exchanged at a time: two of them stay in a core's cache
SEAT_BYTES = 64  # shared_memory.h: Seat
SPINS = 4000  # rounds before a waiting rank yields its core, some 50 µs
NO_SPINS = 0  # where ranks are more than cores: who waits is in the way of whom it waits for


def join(native: Any, group: MPI.Comm, timeout_s: float) -> None:
    """Join the ranks of `group` in the order of their numbers; all of them must call this.

    `timeout_s` is how long a rank waits for the others in one exchange before it is an error.
    """
    ranks, rank = group.Get_size(), group.Get_rank()
    memory = _shared_memory(group, ranks * SEAT_BYTES + 2 * (ranks + 1) * CHUNK_BYTES)
    if memory is None:
        native.join_mpi(torch.tensor(_mpi(group)), ranks, timeout_s)
        return
    crowded = group.allreduce(ranks > len(os.sched_getaffinity(0)), MPI.LOR)
    native.join_shared_memory(memory, ranks, rank, timeout_s, NO_SPINS if crowded else SPINS)


def _shared_memory(group: MPI.Comm, size: int) -> torch.Tensor | None:
    """Memory that all ranks map, zero at first; None where they cannot share any, as on several nodes.

    It has no name: nothing of it can be left over, however the ranks end.
    """
    node = group.Split_type(MPI.COMM_TYPE_SHARED)
    together = node.Get_size() == group.Get_size()
    node.Free()
    if not group.allreduce(together, MPI.LAND):
        return None
    made = _make(size) if group.Get_rank() == 0 else None
    descriptor = _open(group.bcast(f"/proc/{os.getpid()}/fd/{made}"))
    mapped = group.allreduce(descriptor is not None, MPI.LAND)  # and all have opened it
    if made is not None:
        os.close(made)
    if descriptor is None:
        return None
    try:
        return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8) if mapped else None
    finally:
        os.close(descriptor)


def _make(size: int) -> int | None:
    try:
        descriptor = os.memfd_create("opt_trt_ranks")
        os.posix_fallocate(descriptor, 0, size)  # a lack of memory is an error here, not a signal later
    except OSError:
        return None
    return descriptor


def _open(path: str) -> int | None:
    """The memory of another process of this user, None if it may not be opened or is not in sight (containers)."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def _mpi(group: MPI.Comm) -> list[int]:
    """What `join_mpi` takes; the functions are in the MPI that mpi4py has loaded."""
    library = ctypes.CDLL(MPI.__file__)
    functions = (library.MPI_Iallgather, library.MPI_Test)
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    return [*addresses, MPI._handleof(group), MPI._handleof(MPI.FLOAT)]
