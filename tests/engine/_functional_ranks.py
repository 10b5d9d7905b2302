"""The program of each rank of `test_functional`: compiled programs that sum and gather by torch's own operators."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import torch

from opt_trt.backends.inductor.decoder.loading import load_programs
from opt_trt.model.mapping import Mapping
from opt_trt.plugins.collectives import cuda as gpus
from opt_trt.plugins.collectives.links import RankGpu


def main(directory: Path) -> None:
    rank = gpus.MPI.COMM_WORLD.Get_rank()
    with mock.patch.object(gpus, "own_gpu", lambda: RankGpu("here", 0, "one GPU")):
        gpus.connect(Mapping(2, tp_size=2), torch.float32, 500, "cpu")
    names, inputs = torch.load(directory / f"inputs{rank}")
    programs = load_programs(directory / "programs.engine", names)
    found = [program.run([*tensors]) for program, tensors in zip(programs, inputs, strict=True)]
    torch.save(found, directory / f"found{rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
