"""Join ranks on GPUs: each takes a GPU, MPI tells them where to connect, and NCCL sums.

If ranks share a GPU, which NCCL refuses, sums and hidden states go through the host's memory.
"""

from __future__ import annotations

import atexit
import functools
import socket
from datetime import timedelta
from typing import Any

import torch
from mpi4py import MPI
from torch import distributed
from torch._C._distributed_c10d import TCPStore

from opt_trt.errors import UserError
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ALONE, Collectives
from opt_trt.plugins.collectives.cuda_group import GroupCollectives, join_group
from opt_trt.plugins.collectives.cuda_pipeline import GpuPipeline, StateFormat
from opt_trt.plugins.collectives.links import NCCL, GpuAssignment, RankGpu, RankLinks, StageLink
from opt_trt.plugins.collectives.mpi_pipeline import Pipeline

LONGEST_S = 1e8  # stands for unlimited: torch's durations overflow beyond it
# Waited beyond the time of a step. Until then, the process that watches a rank ends it if it hangs, and names it.
LATER_S = 30.0


def take_gpu() -> None:
    """Compute on one of this host's GPUs from now on; its ranks take them in turn. Without GPUs, do nothing.

    The setting is that of the calling thread. A server steps rank 0 in another thread, but that rank has the first GPU,
    which is every thread's default.
    """
    if count := torch.cuda.device_count():
        node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        torch.cuda.set_device(node.Get_rank() % count)
        node.Free()


def own_gpu() -> RankGpu:
    """Return the GPU of this process."""
    index = torch.cuda.current_device()
    return RankGpu(socket.gethostname(), index, str(torch.cuda.get_device_properties(index).uuid))


def connect(mapping: Mapping, dtype: torch.dtype, timeout_s: float, device: str = "cuda") -> RankLinks:
    """Join this process's tensor-parallel group and link its pipeline stages; all ranks must call this.

    A rank that waits longer than `timeout_s` for another raises an error.
    """
    assignment, rank = _join_world(timeout_s), MPI.COMM_WORLD.Get_rank()
    state_format = StateFormat(dtype, device, device if assignment.library == NCCL else "cpu")
    collectives, pipeline = _collectives(mapping, rank, timeout_s), _pipeline(mapping, rank, state_format, timeout_s)
    _try_out(collectives, pipeline, state_format)
    return RankLinks(rank, assignment, collectives, pipeline)


@functools.cache
def _join_world(timeout_s: float) -> GpuAssignment:
    """Join the group of all ranks, once in a process, because a process belongs to one world."""
    world = MPI.COMM_WORLD
    assignment = GpuAssignment(tuple(world.allgather(own_gpu())))
    if distributed.is_initialized():
        raise UserError(
            "this program has called torch.distributed.init_process_group, and the ranks of an engine need the default "
            "group for themselves; open the engine in a program that does not"
        )
    if assignment.library == NCCL and not distributed.is_nccl_available():
        raise UserError(
            f"torch {torch.__version__} has no NCCL, by which ranks on GPUs sum; install torch's own build for CUDA"
        )
    distributed.init_process_group(
        assignment.library, store=_store(world, timeout_s), rank=world.Get_rank(), world_size=world.Get_size(),
        timeout=_duration(timeout_s),
    )  # fmt: skip
    atexit.register(_leave)
    return assignment


def _store(world: MPI.Comm, timeout_s: float) -> TCPStore:
    """Return the store through which ranks connect: rank 0 opens a free port, and MPI tells the others its number."""
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    is_one_host = world.allreduce(node.Get_size() == world.Get_size(), MPI.LAND)
    node.Free()
    host = world.bcast("127.0.0.1" if is_one_host else socket.gethostname())
    options: dict[str, Any] = {"timeout": _duration(timeout_s), "wait_for_workers": False}
    if world.Get_rank():
        return TCPStore(host, world.bcast(None), is_master=False, **options)
    store = TCPStore(host, 0, is_master=True, **options)
    world.bcast(store.port)
    return store


@functools.cache
def _collectives(mapping: Mapping, rank: int, timeout_s: float) -> Collectives:
    """Return the collectives of this rank's tensor-parallel group."""
    if mapping.tp_size == 1:
        return ALONE
    for stage in range(mapping.pp_size):  # every rank must create every group
        ranks = [other for other in range(mapping.world_size) if mapping.pp_rank(other) == stage]
        group = distributed.new_group(ranks, timeout=_duration(timeout_s))
        if rank in ranks:
            join_group(group)
    return GroupCollectives(mapping.tp_size)


@functools.cache
def _pipeline(mapping: Mapping, rank: int, state_format: StateFormat, timeout_s: float) -> GpuPipeline:
    return GpuPipeline(mapping, rank, state_format, Pipeline(MPI.COMM_WORLD.Dup(), mapping, timeout_s))


def _try_out(collectives: Collectives, link: StageLink, state_format: StateFormat) -> None:
    """Exchange a number with every rank of the group and of the neighbouring stages.

    The first exchange opens connections. So a problem between ranks shows now, and no step is captured while
    connections are opened.
    """
    one = torch.ones(1, 1, dtype=state_format.dtype, device=state_format.device)
    collectives.all_gather(collectives.all_reduce(one), 1)
    if not link.is_first:
        one = link.receive(link.expect(1, 1))
    if not link.is_last:
        link.send(one)
    link.answer([one.float()] if link.is_last else [], [(1, 1)])


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds + LATER_S, LONGEST_S))


def _leave() -> None:
    """End NCCL without waiting for other ranks: they may learn of the end later, from MPI."""
    distributed.distributed_c10d._abort_process_group()
