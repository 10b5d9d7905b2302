"""What each rank of `test_ranks` runs: open its part of every engine, and step them all with the same inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mpi4py import MPI

from opt_trt.backends.inductor.decoder import open_decoder
from opt_trt.runtime import kv_cache
from opt_trt.step import Decoder, StepInputs

TOKENS_EACH = 64  # of a sequence in the KV cache
LENGTHS = (3, 1, 50, 40, 37)  # prompts: 131 tokens, which pipeline stages take in two parts
GENERATED = ((11, 12, 13, 14, 15), (21, 22, 23, 24, 25))


def steps(block_tokens: int) -> list[StepInputs]:
    """All prompts at once, then a token of each, whatever the logits say."""
    past = [0] * len(LENGTHS)
    chunks = [[[(7 * i + s) % 128 + 3 for i in range(n)] for s, n in enumerate(LENGTHS)]]
    chunks += [[[token] for token in tokens] for tokens in GENERATED]
    made = []
    for step in chunks:
        made.append(_inputs(step, past, block_tokens))
        past = [start + len(chunk) for start, chunk in zip(past, step, strict=True)]
    return made


def _inputs(step: list[list[int]], past: list[int], block_tokens: int) -> StepInputs:
    ends = torch.tensor([0, *map(len, step)]).cumsum(0)
    positions = [torch.arange(start, start + len(chunk)) for start, chunk in zip(past, step, strict=True)]
    slots = [p + s * TOKENS_EACH for s, p in enumerate(positions)]
    return StepInputs(
        input_ids=torch.tensor([token for chunk in step for token in chunk]),
        position_ids=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        query_start=ends.int(),
        kv_lens=torch.tensor([len(p) + s for p, s in zip(step, past, strict=True)], dtype=torch.int32),
        block_tables=torch.arange(len(step) * TOKENS_EACH // block_tokens, dtype=torch.int32).view(len(step), -1),
        last_token_ids=ends[1:] - 1,
    )


def logits_of(decoder: Decoder) -> torch.Tensor:
    """The logits of all steps, one after another."""
    block_tokens, vocab_size = decoder.spec.tokens_per_block, decoder.spec.vocab_size
    caches = kv_cache.allocate(decoder.spec, len(LENGTHS) * TOKENS_EACH // block_tokens)
    return torch.cat([decoder.step(inputs, caches).logits[:, :vocab_size] for inputs in steps(block_tokens)])


def main(engines: list[Path]) -> None:
    rank = MPI.COMM_WORLD.Get_rank()
    for engine in engines:
        logits = logits_of(open_decoder(engine, rank, timeout_s=120))
        if rank == 0:
            torch.save(logits, engine.with_suffix(".logits"))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
