"""The type of a quantization mode: its functions between a matrix and integers with scales, and the stored shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

SCALE = "per_channel_scale"


def scale_name(weight_name: str) -> str:
    """Return the name of a quantized weight's scale, in checkpoints and engines."""
    return weight_name.removesuffix("weight") + SCALE


@dataclass(frozen=True)
class QuantMode:
    """A way to quantize a linear weight `[out, in]`.

    `quantize` returns integers `[out, in]` in int8 and scales `[out]` in the weight's dtype; `dequantize` turns both
    back into fp32 `[out, in]`.
    """

    name: str
    quant_algo: str  # TensorRT-LLM's name
    bits: int
    quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    dequantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def spec(self, out_features: int, in_features: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of the stored weight (int8 `[in, out]`, two int4 in a byte) and of its scale."""
        return (in_features, out_features * self.bits // 8), (out_features,)
