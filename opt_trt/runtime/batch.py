"""The sequences in flight as packed tensors: the inputs of the next step, without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opt_trt.runtime.scheduler import TokenSequence
from opt_trt.step import StepInputs


@dataclass(frozen=True)
class Batch:
    """`S` sequences after a step, in the scheduler's order; nothing here is ever written to in place."""

    newest_ids: torch.Tensor  # int64 [S], sampled, not yet in the KV cache
    kv_lens: torch.Tensor  # int32 [S], tokens in the KV cache
    block_tables: torch.Tensor  # int32 [S, B]

    def keep(self, rows: list[int], width: int) -> Batch:
        """The sequences in `rows` only; `width` is their longest block table."""
        index = torch.tensor(rows, dtype=torch.int64)
        return Batch(
            self.newest_ids.index_select(0, index),
            self.kv_lens.index_select(0, index),
            self.block_tables[:, :width].index_select(0, index),
        )


def empty_batch() -> Batch:
    """No sequence in flight."""
    no_ids, no_lens = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    return Batch(no_ids, no_lens, torch.empty(0, 0, dtype=torch.int32))


def generation_inputs(batch: Batch, tokens_per_block: int) -> StepInputs:
    """A step in which every sequence of the batch feeds its newest token and nobody joins."""
    num_sequences = batch.kv_lens.shape[0]
    position_ids = batch.kv_lens.long()
    block = batch.block_tables.gather(1, (position_ids // tokens_per_block).unsqueeze(1)).squeeze(1)
    return StepInputs(
        input_ids=batch.newest_ids,
        position_ids=position_ids,
        slot_mapping=block * tokens_per_block + position_ids % tokens_per_block,
        query_start=torch.arange(num_sequences + 1, dtype=torch.int32),
        kv_lens=batch.kv_lens + 1,
        block_tables=batch.block_tables,
        last_token_ids=torch.arange(num_sequences),
    )


def mixed_inputs(batch: Batch, joined: Sequence[TokenSequence], tokens_per_block: int) -> StepInputs:
    """A step in which the batch feeds its newest tokens and `joined` sequences, packed after it, their prompts.

    The logits wanted are those of the last token of each sequence, and of every prompt token of a sequence whose
    context logits were asked for.
    """
    prompt_lens = [len(s.request.prompt_ids) for s in joined]
    query_lens = torch.cat((torch.ones_like(batch.kv_lens), torch.tensor(prompt_lens, dtype=torch.int32)))
    kv_lens = torch.cat((batch.kv_lens + 1, query_lens[batch.kv_lens.shape[0] :]))
    query_start = torch.zeros(query_lens.shape[0] + 1, dtype=torch.int32)
    torch.cumsum(query_lens, 0, dtype=torch.int32, out=query_start[1:])
    tables = _stack_tables(batch.block_tables, joined)

    sequence_of = torch.repeat_interleave(query_lens)  # int64 [T]
    first_position = kv_lens - query_lens - query_start[:-1]  # position = packed index + this
    position_ids = torch.arange(sequence_of.shape[0]) + first_position[sequence_of]
    block = tables[sequence_of, position_ids // tokens_per_block].long()
    prompts = [torch.tensor(s.request.prompt_ids, dtype=torch.int64) for s in joined]
    return StepInputs(
        input_ids=torch.cat((batch.newest_ids, *prompts)),
        position_ids=position_ids,
        slot_mapping=block * tokens_per_block + position_ids % tokens_per_block,
        query_start=query_start,
        kv_lens=kv_lens,
        block_tables=tables,
        last_token_ids=_wanted(query_start, joined),
    )


def _stack_tables(tables: torch.Tensor, joined: Sequence[TokenSequence]) -> torch.Tensor:
    """The batch's block tables with those of the joined sequences below, padded with 0 to the longest."""
    old = tables.shape[0]
    width = max(tables.shape[1], *(len(s.blocks) for s in joined))
    stacked = torch.zeros(old + len(joined), width, dtype=torch.int32)
    stacked[:old, : tables.shape[1]] = tables
    for row, sequence in enumerate(joined, start=old):
        stacked[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks, dtype=torch.int32)
    return stacked


def _wanted(query_start: torch.Tensor, joined: Sequence[TokenSequence]) -> torch.Tensor:
    last = query_start[1:].long() - 1
    if not any(s.request.return_context_logits for s in joined):
        return last
    wanted = [last[: last.shape[0] - len(joined)]]
    for sequence, end in zip(joined, last[-len(joined) :].tolist(), strict=True):
        first = end + 1 - num_context_logits(sequence)
        wanted.append(torch.arange(first, end + 1))
    return torch.cat(wanted)


def num_context_logits(sequence: TokenSequence) -> int:
    """Rows of logits a sequence in the context phase gets."""
    return len(sequence.request.prompt_ids) if sequence.request.return_context_logits else 1
