"""The message of a step: what is packed on one rank comes out on the others."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from opt_trt.runtime.step_message import Copies, StepPlan, pack, unpack
from opt_trt.step import StepInputs

LONG, SHORT = torch.int64, torch.int32
INPUTS = StepInputs(  # two sequences: three tokens of a prompt, one in the generation phase
    input_ids=torch.tensor([5, 6, 7, 8], dtype=LONG),
    position_ids=torch.tensor([0, 1, 2, 9], dtype=LONG),
    slot_mapping=torch.tensor([4, 5, 6, 13], dtype=LONG),
    query_start=torch.tensor([0, 3, 4], dtype=SHORT),
    kv_lens=torch.tensor([3, 10], dtype=SHORT),
    block_tables=torch.tensor([[1, 0, 0], [0, 2, 3]], dtype=SHORT),
    last_token_ids=torch.tensor([2, 3], dtype=LONG),
)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("hidden", [None, torch.tensor([0, 1, 3])])
@pytest.mark.parametrize("copies", [(), ((3, 4),), ((3, 4), (5, 0))])
def test_a_plan_comes_out_as_it_went_in(copies: Copies, hidden: torch.Tensor | None, greedy: bool) -> None:
    inputs = replace(INPUTS, hidden_token_ids=hidden, greedy=greedy)
    plan = unpack(bytearray(pack(StepPlan(inputs, copies))))
    assert tuple(plan.copies) == copies
    for field in fields(StepInputs):
        sent, got = getattr(inputs, field.name), getattr(plan.inputs, field.name)
        if not isinstance(sent, torch.Tensor):
            assert sent is got, field.name
        else:
            assert (got.dtype, got.tolist(), got.is_contiguous()) == (sent.dtype, sent.tolist(), True), field.name


def test_a_token_of_a_long_sequence_costs_a_message_of_bytes() -> None:
    assert len(pack(StepPlan(INPUTS))) == 6 * 8 + 14 * 8 + 11 * 4
