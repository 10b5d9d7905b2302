"""Symmetric quantization per output channel, with the values TensorRT-LLM's own quantizer gives."""

from __future__ import annotations

import torch

BELOW_HALF = 0.5 - 2**-25  # the largest fp32 below 0.5: added to it, 0.49999997 stays below 1, and 0.5 reaches it


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers `[out, in]` in int8 and scales `[out]` in the weight's dtype, of a weight `[out, in]`.

    The largest magnitude of a channel becomes `-2^(bits-1)`; where it is positive, it is cut to one less. Quotients are
    taken with the fp32 scale and rounded half away from zero. A channel of zeros has scale 0 and integers 0.
    """
    limit = 2 ** (bits - 1)
    x = weight.float()  # [out, in]
    scale = x.abs().amax(1) / limit
    x = x / torch.where(scale == 0, 1.0, scale)[:, None]
    x.clamp_(-limit, limit - 1)
    x.add_(torch.copysign(torch.tensor(BELOW_HALF), x))  # the cast truncates towards zero
    return x.to(torch.int8), scale.to(weight.dtype)


def dequantize(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The fp32 weight `[out, in]` that integers and scales stand for."""
    return q.float() * scale.float()[:, None]
