"""Quantized values equal literals, and those of a scalar loop."""

from __future__ import annotations

import pytest
import torch

from opt_trt.config.convert_flags import PRECISIONS
from opt_trt.quant import ALGORITHMS, MODES
from tests.unit._scalar_weight_only import quantize_channel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_names_are_tensorrt_llms() -> None:
    assert {name: mode.quant_algo for name, mode in MODES.items()} == {"int8": "W8A16", "int4": "W4A16"}
    assert ALGORITHMS["W8A16"] is MODES["int8"]


def test_int8_rounds_half_away_from_zero_and_clamps() -> None:
    """The scale is 1, so the weights are the quotients."""
    row = [-128.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -1.4999999, 126.5, 127.0]
    q, scale = MODES["int8"].quantize(torch.tensor([row, [-x for x in row]]))
    assert q.tolist() == [[-128, 1, -1, 2, 3, -3, 0, -1, 127, 127], [127, -1, 1, -2, -3, 3, 0, 1, -127, -127]]
    assert scale.tolist() == [1, 1]


def test_int4_rounds_half_away_from_zero_and_clamps() -> None:
    row = [-8.0, 0.5, -0.5, 1.5, 2.5, -2.5, 6.5, 7.0]
    q, scale = MODES["int4"].quantize(torch.tensor([row, [-x for x in row]]).half())
    assert q.tolist() == [[-8, 1, -1, 2, 3, -3, 7, 7], [7, -1, 1, -2, -3, 3, -7, -7]]
    assert scale.tolist() == [1, 1] and scale.dtype == torch.float16


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_zero_channels_have_scale_zero_and_integers_zero(mode) -> None:
    q, scale = mode.quantize(torch.tensor([[0.0, -0.0], [1.0, 0.0]]))
    assert q[0].tolist() == [0, 0] and scale[0] == 0
    assert mode.dequantize(q, scale)[0].tolist() == [0, 0]


def test_quotients_are_taken_with_the_scale_before_it_is_rounded() -> None:
    """fp16 rounds such a small scale by 0.75 %: with the stored scale, 81.14 would be 81.76."""
    weight = torch.tensor([[2.53677368e-4, 1.60813332e-4]]).half()
    q, scale = MODES["int8"].quantize(weight)
    assert q.tolist() == [[127, 81]]
    assert round((weight.float()[0, 1] / scale.float()[0]).item()) == 82


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("size", [1e-4, 1.0, 300.0])
def test_values_agree_with_a_scalar_loop(mode, dtype, size) -> None:
    weight = (torch.randn(12, 70, generator=torch.Generator().manual_seed(3)) * size).to(dtype)
    weight[5] = 0
    q, scale = mode.quantize(weight)
    expected = [quantize_channel(row, mode.bits) for row in weight.tolist()]
    assert q.tolist() == [integers for integers, _ in expected]
    assert torch.equal(scale, torch.tensor([s for _, s in expected]).to(dtype))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_dequantized_values_are_within_half_a_step_or_the_clamped_one(mode) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    q, scale = mode.quantize(weight)
    error = (mode.dequantize(q, scale) - weight).abs() / scale[:, None]
    clamped = q == 2 ** (mode.bits - 1) - 1
    assert error[~clamped].max() <= 0.5001 and error.max() <= 1.0001


def test_stored_shapes_are_input_features_first() -> None:
    assert MODES["int8"].spec(192, 64) == ((64, 192), (192,))
    assert MODES["int4"].spec(192, 64) == ((64, 96), (192,))


def test_the_flag_offers_every_mode() -> None:
    assert set(MODES) == set(PRECISIONS)
