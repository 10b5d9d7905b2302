"""Read a tensor once: its extremes and, if asked for, the hash of its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from opt_trt.checkpoint.packing import stored_integers
from opt_trt.describe.listing import Entry


@dataclass(frozen=True)
class Measured:
    """A tensor and what its values are; of a packed weight, what its integers are. NaN if any value is NaN."""

    entry: Entry
    low: float
    high: float
    sha256: str | None


def measure(entry: Entry, hashed: bool) -> Measured:
    """Go through the tensor, a block at a time."""
    digest, lows, highs = hashlib.sha256(), [], []
    for block in entry.blocks():
        if hashed:
            digest.update(block.contiguous().flatten().view(torch.uint8).numpy().data)
        values = stored_integers(block.view(torch.int16), entry.packed_bits) if entry.packed_bits else block
        low, high = torch.aminmax(values)
        lows.append(low.item())
        highs.append(high.item())
    return Measured(entry, lowest(lows), highest(highs), digest.hexdigest() if hashed else None)


def lowest(values: list[float]) -> float:
    """The least value; NaN if one is NaN, which Python's `min` would lose."""
    return torch.tensor(values, dtype=torch.float64).amin().item()


def highest(values: list[float]) -> float:
    """The greatest value; NaN if one is NaN."""
    return torch.tensor(values, dtype=torch.float64).amax().item()
