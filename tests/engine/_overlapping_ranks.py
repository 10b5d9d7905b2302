"""The program of each rank of `test_ranks` that shows whether pipeline stages compute different parts at one time.

Layers do nothing here, but there are many of them. In the second part of a step, those of the first stage wait until
the second stage has begun the first part. If it has not begun by the last layer, that layer raises an error.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from mpi4py import MPI

from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.runtime.scheduling import kv_cache
from tests.engine._stepping_ranks import LENGTHS, TOKENS_EACH, steps

LAYERS = 1000
PAUSE_S = 0.01  # the pause of a waiting layer: ten seconds in all


class WaitingLayer:
    """A stand-in for the compiled `layer` of a rank: it notes that it has begun, or waits for the next stage."""

    def __init__(self, rank: int, directory: Path) -> None:
        self._begun = [directory / f"begun{r}" for r in (rank, rank + 2)]
        self._is_first_stage = rank < 2
        self._calls = 0

    def run(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Return the hidden states as they are."""
        self._calls += 1
        own, following = self._begun
        if not self._is_first_stage:
            own.touch()
        elif self._calls > LAYERS and not following.exists():
            assert self._calls < 2 * LAYERS, "the next stage has not begun with the first part of the step"
            time.sleep(PAUSE_S)
        return tensors[0]


def main(engine: Path, directory: Path) -> None:
    decoder = open_decoder(engine, MPI.COMM_WORLD.Get_rank(), timeout_s=120)
    block_tokens = decoder.spec.tokens_per_block
    caches = kv_cache.allocate(decoder.spec, len(LENGTHS) * TOKENS_EACH // block_tokens)
    model, waiting = decoder.forward.model, WaitingLayer(MPI.COMM_WORLD.Get_rank(), directory)
    decoder.forward.model = replace(
        model, programs={**model.programs, "layer": waiting}, layers=[model.layers[0]] * LAYERS
    )
    decoder.step(steps(block_tokens)[0], [caches[0]] * LAYERS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
