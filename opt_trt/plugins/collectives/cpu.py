"""Join the ranks of a tensor-parallel group: through memory that they share, or through MPI across nodes."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os

import torch
from mpi4py import MPI

from opt_trt.model.mapping import Mapping
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline
from opt_trt.plugins.cpu.operators import Operators

CHUNK_BYTES = 1 << 18  # long vectors are exchanged in chunks, of which two stay in a core's cache
RANK_STATE_BYTES = 64  # the size of `RankState` in shared_memory.h
SPINS = 4000  # rounds before a waiting rank yields its core: some 50 µs
NO_SPINS = 0  # if there are more ranks than cores: a spinning rank would block the rank that it waits for


@functools.cache
def connect(operators: Operators, mapping: Mapping, timeout_s: float) -> Pipeline:
    """Join this process's tensor-parallel group and link its pipeline stages; all ranks must call this.

    Programs find their group in their library, whose `operators` these are, by its size. So engines of one mapping
    share it.
    """
    world = MPI.COMM_WORLD
    assert world.Get_size() == mapping.world_size, (world.Get_size(), mapping)
    rank = world.Get_rank()
    group = world.Split(mapping.pp_rank(rank), rank)
    if mapping.tp_size > 1:
        join(operators, group, timeout_s)
    return Pipeline(world.Dup(), mapping, timeout_s)


def join(operators: Operators, group: MPI.Comm, timeout_s: float) -> None:
    """Join the ranks of `group` in the order of their numbers.

    All ranks of the world must call this, each with its group. A rank that waits longer than `timeout_s` for the others
    in one exchange raises an error.
    """
    ranks, rank = group.Get_size(), group.Get_rank()
    spins = NO_SPINS if _is_crowded() else SPINS
    memory = _shared_memory(group, ranks * RANK_STATE_BYTES + 2 * (ranks + 1) * CHUNK_BYTES)
    if memory is None:
        operators.join_mpi(torch.tensor(_mpi(group)), ranks, timeout_s)
        return
    operators.join_shared_memory(memory, ranks, rank, timeout_s, spins)


def _is_crowded() -> bool:
    """Return whether this node has more ranks than cores that they may use."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    cores = set[int]().union(*node.allgather(os.sched_getaffinity(0)))
    try:
        return node.Get_size() > len(cores)
    finally:
        node.Free()


def _shared_memory(group: MPI.Comm, size: int) -> torch.Tensor | None:
    """Return memory that all ranks map, filled with zeros; None if they cannot share any, as on several nodes.

    The memory has no name, so that nothing is left over, however the ranks end.
    """
    node = group.Split_type(MPI.COMM_TYPE_SHARED)
    together = node.Get_size() == group.Get_size()
    node.Free()
    if not group.allreduce(together, MPI.LAND):
        return None
    made = _make(size) if group.Get_rank() == 0 else None
    descriptor = _open(*group.bcast(_address(made)))
    mapped = group.allreduce(descriptor is not None, MPI.LAND)  # once this returns, all ranks have opened it
    if made is not None:
        os.close(made)
    if descriptor is None:
        return None
    try:
        return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8) if mapped else None
    finally:
        os.close(descriptor)


def _make(size: int) -> int | None:
    """Return a descriptor of new memory; None if there is not enough."""
    descriptor = None
    try:
        descriptor = os.memfd_create("opt_trt_ranks")
        os.posix_fallocate(descriptor, 0, size)  # so that a lack of memory is an error here, not a signal later
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _address(descriptor: int | None) -> tuple[str, tuple[int, int]]:
    """Return the path by which other processes can open a descriptor's memory, and the numbers of its file."""
    if descriptor is None:
        return "", (0, 0)
    stat = os.fstat(descriptor)
    return f"/proc/{os.getpid()}/fd/{descriptor}", (stat.st_dev, stat.st_ino)


def _open(path: str, file: tuple[int, int]) -> int | None:
    """Open another process's memory; None if that is forbidden, or if processes are numbered in separate containers."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    stat = os.fstat(descriptor)
    if (stat.st_dev, stat.st_ino) == file:
        return descriptor
    os.close(descriptor)
    return None


def _mpi(group: MPI.Comm) -> list[int]:
    """Return the addresses and handles that `join_mpi` takes, from the MPI that mpi4py has loaded."""
    library = ctypes.CDLL(MPI.__file__)
    functions = (library.MPI_Iallgather, library.MPI_Test)
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    handles = [ctypes.c_int64(MPI._handleof(handle)).value for handle in (group, MPI.FLOAT)]  # negative in MPICH
    return [*addresses, *handles]
