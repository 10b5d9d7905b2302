"""Unpacking returns the int4 values that were packed, along any axis."""

from __future__ import annotations

import pytest
import torch

from opt_trt.quant.nibbles import pack_nibbles, unpack_nibbles


def test_the_earlier_value_is_in_the_low_bits_and_zero_is_eight():
    q = torch.tensor([[-8, 7, 0, -1, 3]], dtype=torch.int8)
    assert pack_nibbles(q, 1).tolist() == [[0xF0, 0x78, 0x8B]]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 5, 7), (1, 1, 1)])
def test_unpacking_undoes_packing(dim, shape):
    q = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    packed = pack_nibbles(q, dim)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.shape[dim] == (shape[dim] + 1) // 2
    assert torch.equal(unpack_nibbles(packed, dim).narrow(dim, 0, shape[dim]), q)
