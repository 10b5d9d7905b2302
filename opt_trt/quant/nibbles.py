"""Two int4 in a byte, as our own engines store them: the earlier one in the low bits, each plus 8."""

from __future__ import annotations

import torch

BIAS = 8  # int4 runs from -8 to 7, a nibble from 0 to 15


def pack_nibbles(q: torch.Tensor, dim: int) -> torch.Tensor:
    """Pairs along `dim` of int4 values held in int8 → uint8, half as long there; an odd one out is paired with 0."""
    if q.shape[dim] % 2:
        q = torch.cat((q, torch.zeros_like(q.narrow(dim, 0, 1))), dim)
    pairs = q.add(BIAS).to(torch.uint8).reshape(*q.shape[:dim], -1, 2, *q.shape[dim + 1 :])
    low, high = pairs.unbind(dim + 1)
    return torch.bitwise_or(low, high << 4).contiguous()


def unpack_nibbles(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """The inverse of `pack_nibbles`, in int8; after an odd length a 0 too many."""
    pairs = torch.stack((packed & 15, packed >> 4), dim + 1)
    return pairs.flatten(dim, dim + 1).to(torch.int8) - BIAS
