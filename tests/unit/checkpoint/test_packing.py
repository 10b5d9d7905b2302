"""The packed layout equals that of the scalar steps, and unpacking undoes packing for every GPU, width and shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opt_trt.checkpoint.packing import is_interleaved, pack, shape_problems, unpack
from opt_trt.errors import UserError
from tests.unit._scalar_weight_only import pack as scalar_pack

SMS = [75, 80, 86, 87, 89, 90, *range(100, 120), 120, 121, 130]
BITS = [8, 4]
STEP = {(8, True): (32, 64), (4, True): (64, 64), (8, False): (32, 32), (4, False): (64, 64)}  # output, input features


def integers(out_features: int, in_features: int, bits: int, seed: int = 0) -> torch.Tensor:
    limit = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit, (out_features, in_features), generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("out_features", "in_features"), [(64, 64), (64, 192), (128, 128)])
def test_bytes_are_those_of_the_scalar_steps(bits: int, sm: int, out_features: int, in_features: int) -> None:
    q = integers(out_features, in_features, bits)
    packed = pack(q, bits, sm)
    assert packed.shape == (in_features, out_features * bits // 8) and packed.dtype == torch.int8
    assert packed.numpy().tobytes() == scalar_pack(q.T.tolist(), bits, sm)


def test_shapes_that_only_sm_90_takes_are_those_of_the_scalar_steps() -> None:
    q = integers(32, 96, 8)
    assert pack(q, 8, 90).numpy().tobytes() == scalar_pack(q.T.tolist(), 8, 90)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), sm=st.sampled_from(SMS), bits=st.sampled_from(BITS), seed=st.integers(0, 2**31))
def test_unpacking_undoes_packing(data: st.DataObject, sm: int, bits: int, seed: int) -> None:
    out_step, in_step = STEP[bits, sm != 90]
    shape = out_step * data.draw(st.integers(1, 5)), in_step * data.draw(st.integers(1, 5))
    q = integers(*shape, bits, seed)
    assert torch.equal(unpack(pack(q, bits, sm), bits, sm), q)


@settings(max_examples=50, deadline=None)
@given(sm=st.sampled_from(SMS), bits=st.sampled_from(BITS), shape=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_every_other_shape_is_refused(sm: int, bits: int, shape: tuple[int, int]) -> None:
    out_step, in_step = STEP[bits, sm != 90]
    assert bool(shape_problems(*shape, bits, sm)) == bool(shape[0] % out_step or shape[1] % in_step)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sm", [80, 90])
def test_blocks_of_output_features_lie_one_after_another(bits: int, sm: int) -> None:
    q = integers(192, 128, bits)
    parts = [pack(block, bits, sm).flatten() for block in q.split(64)]
    assert torch.equal(torch.cat(parts), pack(q, bits, sm).flatten())


def test_int8_bytes_are_biased_and_paired_over_eight() -> None:
    """SM 90 does not interleave: values 0 and 8, 1 and 9, … of a channel are neighbours, and 128 is added to each."""
    q = torch.arange(32, dtype=torch.int8).repeat(32, 1)
    first = pack(q, 8, 90).view(torch.uint8).flatten()[:16].tolist()
    assert first == [128, 136, 129, 137, 130, 138, 131, 139, 132, 140, 133, 141, 134, 142, 135, 143]


def test_int4_words_hold_every_eighth_value_lowest_first() -> None:
    q = (torch.arange(64, dtype=torch.int8) // 8 % 4).repeat(64, 1)  # 0 in values 0-7, 1 in 8-15, ...
    assert set(pack(q, 4, 90).view(torch.int16).flatten().tolist()) == {0xBA98 - 2**16}


def test_packing_leaves_its_input_alone() -> None:
    q = integers(64, 64, 4)
    before = q.clone()
    pack(q, 4, 80)
    assert torch.equal(q, before)


def test_non_contiguous_integers_are_packed() -> None:
    q = integers(64, 128, 8)
    assert torch.equal(pack(q[:, 64:], 8, 80), pack(q[:, 64:].clone(), 8, 80))


@pytest.mark.parametrize("sm", [0, 60, 70, 72, 76, 88, 91, 99])
def test_an_unknown_gpu_is_named(sm: int) -> None:
    with pytest.raises(UserError, match=rf"SM {sm} .*known are 75, 80, 86, 87, 89, 90, 100 to 119, 120 and up"):
        is_interleaved(sm)


def test_a_shape_that_cannot_be_packed_is_named_by_dimension() -> None:
    with pytest.raises(UserError, match=r"48 input features must be a multiple of 64; 40 output features .* of 32"):
        pack(integers(40, 48, 8), 8, 80)
