"""Symmetric quantization per output channel, with the same values as TensorRT-LLM's own quantizer."""

from __future__ import annotations

import torch

BELOW_HALF = 0.5 - 2**-25  # the largest fp32 below 0.5. Its sum with 0.49999997 is below 1, its sum with 0.5 is 1


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight `[out, in]`: return integers `[out, in]` in int8, and scales `[out]` in the weight's dtype.

    The largest magnitude of a channel becomes `-2^(bits-1)`, or `2^(bits-1) - 1` if it is positive. Weights are divided
    by the fp32 scale and rounded half away from zero. A channel of zeros has scale 0 and integers 0.
    """
    limit = 2 ** (bits - 1)
    x = weight.float()  # [out, in]
    scale = x.abs().amax(1) / limit
    x = x / torch.where(scale == 0, 1.0, scale)[:, None]
    x.clamp_(-limit, limit - 1)
    x.add_(torch.copysign(torch.tensor(BELOW_HALF), x))  # the cast truncates towards zero
    return x.to(torch.int8), scale.to(weight.dtype)


def dequantize(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the fp32 weight `[out, in]` that integers and scales represent."""
    return q.float() * scale.float()[:, None]
