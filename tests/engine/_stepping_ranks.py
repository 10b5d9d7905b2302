"""The program of each rank of `test_ranks`: open its part of every engine, and step all with the same inputs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from mpi4py import MPI

from opt_trt.backends.inductor.decoder.compiled import open_decoder
from opt_trt.runtime.scheduling import kv_cache
from opt_trt.step import Decoder, StepInputs, StepOutputs

TOKENS_EACH = 64  # room of a sequence in the KV cache
LENGTHS = (3, 1, 50, 40, 37)  # prompts: 131 tokens, which pipeline stages take in two parts
GENERATED = ((11, 12, 13, 14, 15), (21, 22, 23, 24, 25))


def steps(block_tokens: int) -> list[StepInputs]:
    """Return steps: all prompts; again, with logits of the last prompt only; then fixed tokens, one for each prompt."""
    past = [0] * len(LENGTHS)
    chunks = [[[(7 * i + s) % 128 + 3 for i in range(n)] for s, n in enumerate(LENGTHS)]]
    chunks += [[[token] for token in tokens] for tokens in GENERATED]
    made = []
    for step in chunks:
        made.append(_inputs(step, past, block_tokens))
        past = [start + len(chunk) for start, chunk in zip(past, step, strict=True)]
    return [made[0], replace(made[0], last_token_ids=made[0].last_token_ids[-1:]), *made[1:]]


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
    """Return the logits of all steps, one after another."""
    return torch.cat([outputs.logits[:, : decoder.spec.vocab_size] for outputs in outputs_of(decoder, greedy=False)])


def largest_of(decoder: Decoder) -> torch.Tensor:
    """Return the tokens of the largest logits of all steps."""
    outputs = outputs_of(decoder, greedy=True)
    return torch.cat([o.token_ids.gather(1, o.logits.argmax(1, keepdim=True)) for o in outputs]).flatten()


def outputs_of(decoder: Decoder, greedy: bool) -> list[StepOutputs]:
    """Return the outputs of a decoder for all steps."""
    block_tokens = decoder.spec.tokens_per_block
    caches = kv_cache.allocate(decoder.spec, len(LENGTHS) * TOKENS_EACH // block_tokens)
    return [decoder.step(replace(inputs, greedy=greedy), caches) for inputs in steps(block_tokens)]


def main(engines: list[Path]) -> None:
    rank = MPI.COMM_WORLD.Get_rank()
    for engine in engines:
        decoder = open_decoder(engine, rank, timeout_s=120)
        found = logits_of(decoder), largest_of(decoder)
        if rank == 0:
            torch.save(found, engine.with_suffix(".found"))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
