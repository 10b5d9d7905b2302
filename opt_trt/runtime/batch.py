"""The chunks of a step as packed tensors: the inputs of the decoder, and which of its logits are whose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opt_trt.runtime.sequence import Chunk, TokenSequence
from opt_trt.step import StepInputs


def step_inputs(chunks: Sequence[Chunk], tokens_per_block: int) -> StepInputs:
    """Pack chunks in their order; see `StepInputs` for shapes. The logits wanted are those of `wanted_rows`."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_start = [0]
    for chunk in chunks:
        blocks = chunk.sequence.blocks
        ids += chunk.sequence.ids(chunk.start, chunk.end)
        positions += range(chunk.start, chunk.end)
        slots += [blocks[p // tokens_per_block] * tokens_per_block + p % tokens_per_block
                  for p in range(chunk.start, chunk.end)]  # fmt: skip
        query_start.append(len(ids))
    tables = [chunk.sequence.blocks for chunk in chunks]
    width = max(map(len, tables))
    return StepInputs(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_start=torch.tensor(query_start, dtype=torch.int32),
        kv_lens=torch.tensor([chunk.end for chunk in chunks], dtype=torch.int32),
        block_tables=torch.tensor([(*t, *(0,) * (width - len(t))) for t in tables], dtype=torch.int32),
        last_token_ids=torch.tensor(_wanted(chunks, query_start)),
    )


def _wanted(chunks: Sequence[Chunk], query_start: Sequence[int]) -> list[int]:
    """Packed indices of the tokens whose logits are wanted; a decoder gives at least one row."""
    wanted: list[int] = []
    for chunk, end in zip(chunks, query_start[1:], strict=True):
        wanted += range(end - num_logits(chunk), end)
    return wanted or [0]


def num_logits(chunk: Chunk) -> int:
    """Rows of logits a chunk gets: one for each prompt token if asked for, else one if a new token follows."""
    return chunk.num_tokens if chunk.has_context_logits else int(chunk.is_last)


def split_logits(logits: torch.Tensor, chunks: Sequence[Chunk]) -> tuple[torch.Tensor, list[TokenSequence]]:
    """Give sequences the context logits asked for; the rows `[N, V]` that choose new tokens, and whose they are."""
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        start, end = end, end + num_logits(chunk)
        if chunk.has_context_logits:
            chunk.sequence.context_logits.append(logits[start:end].clone())
        if chunk.is_last:
            rows.append(end - 1)
    sequences = [chunk.sequence for chunk in chunks if chunk.is_last]
    return logits if len(rows) == logits.shape[0] else logits[rows], sequences
