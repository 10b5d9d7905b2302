"""Integer weights are stored as the compiler wants them: `[in, out]`, filled up, two int4 in a byte."""

from __future__ import annotations

import pytest
import torch

from opt_trt.backends.tensorrt.narrow_weights import HEAD, group_size, pack_int4, rounded_up, store
from opt_trt.checkpoint.weight_only import table_blocks
from opt_trt.errors import UserError
from opt_trt.quant import MODES


def test_the_first_of_two_int4_lies_in_the_low_bits():
    assert pack_int4(torch.tensor([[1, -2], [7, -8]], dtype=torch.int8)).tolist() == [[0xE1], [0x87]]


def test_an_odd_row_of_int4_ends_with_a_zero():
    assert pack_int4(torch.tensor([[1, -2, -3]], dtype=torch.int8)).tolist() == [[0xE1, 0x0D]]


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("out_features", [192, 61])
def test_blocks_are_stored_in_their_places_and_the_rest_is_zero(monkeypatch, name, out_features):
    monkeypatch.setattr("opt_trt.checkpoint.weight_only.BLOCK_ELEMENTS", 64 * 40)  # 192 features are three blocks
    torch.manual_seed(1)
    weight, mode = torch.randn(out_features, 40), MODES[name]
    weight[7] = 0
    columns, rows = rounded_up(out_features + 2, 8), 48
    memory, scale = torch.zeros(rows, columns * mode.bits // 8, dtype=torch.uint8), torch.ones(columns)
    store(table_blocks(weight, mode), mode, memory, scale)
    if mode.bits == 4:
        memory = torch.stack((memory & 15, memory >> 4), 2).view(torch.int8).bitwise_xor_(8).sub_(8)
    q, expected_scale = mode.quantize(weight)
    expected = torch.zeros(rows, columns, dtype=torch.int8)
    expected[:40, :out_features] = q.T
    assert torch.equal(memory.reshape(rows, columns).view(torch.int8), expected)
    expected_scale[7] = 1  # the library does not allow the scale 0
    assert torch.equal(scale, torch.nn.functional.pad(expected_scale, (0, columns - out_features), value=1.0))


@pytest.mark.parametrize(
    ("in_features", "group"), [(768, 128), (512, 128), (192, 64), (160, 32), (208, 16), (128, 64), (64, 32), (16, 16)]
)
def test_a_scale_of_int4_is_shared_by_the_largest_group_that_leaves_two(in_features, group):
    assert group_size("weight", in_features) == group


@pytest.mark.parametrize(
    ("name", "advice"), [("layers.0.mlp.proj.weight", "convert the model"), (HEAD, "give --lm_head_precision")]
)
def test_int4_without_a_group_is_refused_with_what_to_do(name, advice):
    with pytest.raises(UserError, match=rf"multiple of 16, found 72 in {name}; {advice}.* int8"):
        group_size(name, 72)


@pytest.mark.parametrize(("count", "step", "found"), [(37, 16, 48), (48, 16, 48), (37, 1, 37)])
def test_sizes_are_rounded_up(count, step, found):
    assert rounded_up(count, step) == found
