"""The program of each rank of `test_collectives`: join by shared memory and by MPI, and compare with plain sums."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mpi4py import MPI

from opt_trt.plugins.collectives import cpu as rendezvous
from opt_trt.plugins.collectives.native_group import NativeCollectives
from opt_trt.plugins.cpu.isa import runnable_isas
from opt_trt.plugins.native.library import compile_library
from tests.engine.test_collectives import SHAPES, parts, plain


def check_numbers() -> None:
    """Check that a path to another file is noticed by its number: containers may number processes apart."""
    path, file = rendezvous._address(rendezvous._make(64))
    assert rendezvous._open(path, file) is not None
    assert rendezvous._open(path, (file[0], file[1] + 1)) is None


def main(cache: Path) -> None:
    world = MPI.COMM_WORLD
    ranks, rank = world.Get_size(), world.Get_rank()
    native = compile_library(runnable_isas()[0].march, cache).operators()
    ops = NativeCollectives(native, ranks)
    check_numbers()
    for where in ("node", "nodes"):
        if where == "nodes":
            rendezvous._shared_memory = lambda group, size: None  # as if the ranks were on several
        rendezvous.join(native, world, timeout_s=60)
        for shape in SHAPES:
            everyone = parts(ranks, shape)
            total, gathered = plain(everyone)
            assert torch.equal(ops.all_reduce(everyone[rank]), total), (where, shape)
            features = gathered.shape[1] - 1
            assert torch.equal(ops.all_gather(everyone[rank], features), gathered[:, :features]), (where, shape)
        if rank == 0:
            print(f"equal on {where}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
