"""Measure tensors a block at a time: the extremes and the hash of one, the largest differences between two."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass

import torch

from opt_trt.checkpoint.packing import stored_integers
from opt_trt.describe.listing import ListedTensor, blocks_of


@dataclass(frozen=True)
class MeasuredTensor:
    """A tensor and the extremes of its values; of the integers, if the weight is packed. NaN if any value is NaN."""

    entry: ListedTensor
    low: float
    high: float
    sha256: str | None


@dataclass(frozen=True)
class Difference:
    """Extremes over all elements; NaN or infinite where only one of the two values is."""

    largest: float  # |a - b|
    relative: float  # |a - b| over the larger magnitude of the two: 2 for opposite values
    rms: float  # root mean square of a - b, over that of a

    def to_json(self) -> dict[str, float | None]:
        """Return plain values; null stands for NaN and infinity."""
        return {f"{k}_difference": v if math.isfinite(v) else None for k, v in asdict(self).items()}


def measure_tensor(entry: ListedTensor, hashed: bool) -> MeasuredTensor:
    """Read a tensor once, and hash its bytes if `hashed`."""
    digest, lows, highs = hashlib.sha256(), [], []
    for block in entry.blocks():
        if hashed:
            digest.update(block.contiguous().flatten().view(torch.uint8).numpy().data)
        values = stored_integers(block.view(torch.int16), entry.packed_bits) if entry.packed_bits else block
        low, high = torch.aminmax(values)
        lows.append(low.item())
        highs.append(high.item())
    return MeasuredTensor(entry, lowest(lows), highest(highs), digest.hexdigest() if hashed else None)


def compare_tensors(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Compare two tensors of one shape element by element in fp32; equal elements (NaN and NaN too) differ by 0."""
    largest, relative, squares, reference = [0.0], [0.0], 0.0, 0.0
    for x, y in zip(blocks_of(a), blocks_of(b), strict=True):
        x, y = x.float(), y.float()
        apart = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
        magnitude = torch.maximum(x.abs(), y.abs())
        largest.append(apart.amax().item())
        relative.append(torch.where(apart == 0, 0.0, apart / magnitude).amax().item())
        squares += apart.double().square().sum().item()
        reference += x.double().square().sum().item()
    rms = math.sqrt(squares / reference) if reference else math.inf if squares else 0.0
    return Difference(highest(largest), highest(relative), rms)


def lowest(values: list[float]) -> float:
    """Return the least value; NaN if one is NaN, which Python's `min` would lose."""
    return torch.tensor(values, dtype=torch.float64).amin().item()


def highest(values: list[float]) -> float:
    """Return the greatest value; NaN if one is NaN."""
    return torch.tensor(values, dtype=torch.float64).amax().item()
