"""What every rank does in a step, and how it travels from the leader to the others: one small message."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opt_trt.step import StepInputs

Copies = Sequence[tuple[int, int]]  # from block, to block

HEADER_BYTES = 4 * 8  # int64: T, L, S, B of `StepInputs`


@dataclass(frozen=True)
class Plan:
    """One step: blocks of the KV cache to copy first, then what the decoder is given."""

    inputs: StepInputs
    copies: Copies = ()


def pack(plan: Plan) -> bytes:
    """The plan as bytes: sizes, then its tensors, those of 8 bytes a number first, so that all are aligned."""
    inputs = plan.inputs
    sizes = (inputs.input_ids.shape[0], inputs.last_token_ids.shape[0], *inputs.block_tables.shape)
    tensors = (
        inputs.input_ids, inputs.position_ids, inputs.slot_mapping, inputs.last_token_ids,
        inputs.query_start, inputs.kv_lens, inputs.block_tables,
    )  # fmt: skip
    copies = array("i", [block for copy in plan.copies for block in copy])
    return b"".join((array("q", sizes).tobytes(), *(t.numpy().tobytes() for t in tensors), copies.tobytes()))


def unpack(message: bytearray | memoryview) -> Plan:
    """The plan that was packed; its tensors are views of the message."""
    num_tokens, num_logits, num_sequences, width = array("q", bytes(message[:HEADER_BYTES]))
    long = torch.frombuffer(message, dtype=torch.int64, offset=HEADER_BYTES, count=3 * num_tokens + num_logits)
    end = HEADER_BYTES + long.nbytes
    table = num_sequences * width
    short = torch.frombuffer(message, dtype=torch.int32, offset=end)
    ids, positions, slots, wanted = long.split_with_sizes((num_tokens, num_tokens, num_tokens, num_logits))
    num_copied = short.shape[0] - (2 * num_sequences + 1 + table)
    starts, kv_lens, tables, copies = short.split_with_sizes((num_sequences + 1, num_sequences, table, num_copied))
    inputs = StepInputs(ids, positions, slots, starts, kv_lens, tables.view(num_sequences, width), wanted)
    return Plan(inputs, [(source, target) for source, target in copies.view(-1, 2).tolist()])
