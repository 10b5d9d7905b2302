"""The plan of a step, and how it travels from the leader to the other ranks: one small message."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opt_trt.step import StepInputs

Copies = Sequence[tuple[int, int]]  # pairs of a block to copy from and a block to copy to

HEADER_BYTES = 6 * 8  # int64: T, L, M, S, B and `greedy` of `StepInputs`


@dataclass(frozen=True)
class StepPlan:
    """One step: blocks of the KV cache to copy first, then the inputs of the decoder."""

    inputs: StepInputs
    copies: Copies = ()


def pack(plan: StepPlan) -> bytes:
    """Return the plan as bytes: sizes, then its tensors. Tensors of 8-byte numbers come first, so that all are aligned.

    `draws` is left out, because no decoder of several ranks draws tokens.
    """
    inputs = plan.inputs
    assert inputs.draws is None, "several ranks"
    hidden = torch.empty(0, dtype=torch.int64) if inputs.hidden_token_ids is None else inputs.hidden_token_ids
    sizes = (
        len(inputs.input_ids), len(inputs.last_token_ids), len(hidden), *inputs.block_tables.shape, inputs.greedy
    )  # fmt: skip
    tensors = (
        inputs.input_ids, inputs.position_ids, inputs.slot_mapping, inputs.last_token_ids, hidden,
        inputs.query_start, inputs.kv_lens, inputs.block_tables,
    )  # fmt: skip
    copies = array("i", [block for copy in plan.copies for block in copy])
    return b"".join((array("q", sizes).tobytes(), *(t.numpy().tobytes() for t in tensors), copies.tobytes()))


def unpack(message: bytearray | memoryview) -> StepPlan:
    """Return the plan that was packed; its tensors are views of the message."""
    num_tokens, num_logits, num_hidden, num_sequences, width, greedy = array("q", bytes(message[:HEADER_BYTES]))
    counts = (num_tokens, num_tokens, num_tokens, num_logits, num_hidden)
    long = torch.frombuffer(message, dtype=torch.int64, offset=HEADER_BYTES, count=sum(counts))
    end = HEADER_BYTES + long.nbytes
    table = num_sequences * width
    short = torch.frombuffer(message, dtype=torch.int32, offset=end)
    ids, positions, slots, wanted, hidden = long.split_with_sizes(counts)
    num_copied = short.shape[0] - (2 * num_sequences + 1 + table)
    starts, kv_lens, tables, copies = short.split_with_sizes((num_sequences + 1, num_sequences, table, num_copied))
    tables = tables.view(num_sequences, width)
    states = hidden if num_hidden else None
    inputs = StepInputs(ids, positions, slots, starts, kv_lens, tables, wanted, states, bool(greedy))
    return StepPlan(inputs, [(source, target) for source, target in copies.view(-1, 2).tolist()])
