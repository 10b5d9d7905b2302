"""Store two int4 in a byte, as our own engines do: the first one in the low bits, 8 added to each."""

from __future__ import annotations

import torch

BIAS = 8  # an int4 is between -8 and 7, a nibble between 0 and 15


def pack_nibbles(q: torch.Tensor, dim: int) -> torch.Tensor:
    """Pack pairs of int4 along `dim`, given as int8, into uint8; after an odd length the last one is paired with 0."""
    if q.shape[dim] % 2:
        q = torch.cat((q, torch.zeros_like(q.narrow(dim, 0, 1))), dim)
    pairs = q.add(BIAS).to(torch.uint8).reshape(*q.shape[:dim], -1, 2, *q.shape[dim + 1 :])
    low, high = pairs.unbind(dim + 1)
    return torch.bitwise_or(low, high << 4).contiguous()


def unpack_nibbles(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """Undo `pack_nibbles`, in int8; after an odd length there is one 0 too many."""
    pairs = torch.stack((packed & 15, packed >> 4), dim + 1)
    return pairs.flatten(dim, dim + 1).to(torch.int8) - BIAS
