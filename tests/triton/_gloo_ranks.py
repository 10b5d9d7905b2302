"""The program of each rank of `test_ranks`: the connections of ranks that share a GPU, with a CPU in its place."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from opt_trt.backends.inductor.decoder import cuda_ranks
from opt_trt.backends.inductor.decoder.cuda import cuda_forward
from opt_trt.backends.inductor.decoder.cuda_ranks import CudaRankDecoder, Relaunched
from opt_trt.backends.inductor.decoder.program_table import HALF_CONTEXT
from opt_trt.plugins.collectives import cuda as gpus
from opt_trt.plugins.collectives.links import RankGpu
from opt_trt.runtime.scheduling import kv_cache
from tests.engine._stepping_ranks import TOKENS_EACH, _inputs
from tests.triton._engine import Prepared
from tests.triton._ranks import GIVEN, NEXT

LIMITS = {"max_batch_size": 2, "max_num_tokens": 12, "max_seq_len": 64, "tokens_per_block": 4}


def found_by(decoder: CudaRankDecoder, greedy: bool) -> list[torch.Tensor]:
    """Return logits, or the tokens of the largest ones, of both prompts and of the token that follows each."""
    caches = kv_cache.allocate(decoder.spec, len(GIVEN) * TOKENS_EACH // 4)
    found = []
    for step, past in ((GIVEN, [0, 0]), (NEXT, [len(prompt) for prompt in GIVEN])):
        inputs = replace(_inputs([*step], past, 4), greedy=greedy)
        outputs = decoder.step(inputs, caches)
        places = outputs.logits.argmax(1, keepdim=True)
        found.append(outputs.logits if outputs.token_ids is None else outputs.token_ids.gather(1, places))
    return found


def main(checkpoint: Path, out: Path) -> None:
    with (
        mock.patch.object(gpus, "own_gpu", lambda: RankGpu("here", 0, "one GPU")),
        mock.patch.object(cuda_ranks, "LEAST_TOKENS", 4),  # a stage works on a prompt while the next one has another
    ):
        rank = gpus.MPI.COMM_WORLD.Get_rank()
        prepared = Prepared(checkpoint, rank, **LIMITS)
        links = gpus.connect(prepared.limits.model.mapping, torch.float16, 500, "cpu")
        assert not links.is_capturable and links.sharers == gpus.MPI.COMM_WORLD.Get_size()
        model = prepared.model(prepared.programs("cpu", links.collectives), "cpu")
        forward = cuda_forward(prepared.config, model, HALF_CONTEXT, rank, links.collectives)
        decoder = CudaRankDecoder(forward, Relaunched, links)
        found = found_by(decoder, greedy=False), found_by(decoder, greedy=True)
        if rank == 0:
            torch.save(found, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
