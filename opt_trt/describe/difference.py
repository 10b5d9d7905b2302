"""How far two tensors of one shape are apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from opt_trt.describe.extremes import highest
from opt_trt.describe.listing import blocks_of


@dataclass(frozen=True)
class Difference:
    """Extremes over all elements; NaN or infinite where only one of the two values is."""

    largest: float  # |a - b|
    relative: float  # |a - b| over the larger magnitude of the two: 2 for opposite values
    rms: float  # of a - b, over that of a

    def to_json(self) -> dict[str, float | None]:
        """Plain values; null for what is not finite."""
        return {f"{k}_difference": v if math.isfinite(v) else None for k, v in asdict(self).items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Compare element by element, a block at a time, in fp32; equal elements (NaN and NaN too) differ by 0."""
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
