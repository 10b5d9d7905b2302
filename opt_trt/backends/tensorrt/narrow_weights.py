"""Integer weights as TensorRT's compiler wants them: `[in, out]`, int4 by group, sizes filled up with zeros."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from opt_trt.checkpoint.weight_only import IntegerBlock
from opt_trt.errors import UserError, spelled
from opt_trt.quant.mode import QuantMode

HEAD = "lm_head.weight"
GROUPS = (128, 64, 32, 16)  # numbers of input features that can share a scale of int4, the best first
# The compiler widens quantized weights of other sizes at every step. Features within an MLP are filled up with zeros,
# and so are the rows of a head, whose logits are cut off again.
MLP_STEP, HEAD_STEP = 16, 8


def rounded_up(count: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `count`."""
    return -(-count // step) * step


def store(blocks: Iterable[IntegerBlock], mode: QuantMode, memory: torch.Tensor, scale: torch.Tensor) -> None:
    """Write blocks of a weight into `memory`, zeros in uint8 `[in, out * bits / 8]`, and into `scale`, ones `[out]`.

    What the blocks do not reach stays as it is. A channel of zeros keeps the scale 1: the library does not allow 0.
    """
    for rows, q, block_scale in blocks:
        scale[rows] = torch.where(block_scale == 0, 1, block_scale)
        values = q.T.contiguous()
        packed = pack_int4(values) if mode.bits == 4 else values.view(torch.uint8)
        first = rows.start * mode.bits // 8
        memory[: len(packed), first : first + packed.shape[1]] = packed


def pack_int4(q: torch.Tensor) -> torch.Tensor:
    """Pack int4 values `[in, out]`, given as int8, into bytes `[in, out / 2]`, rounded up.

    They are two's complements, the first of two in the low bits.
    """
    low, high = q[:, ::2], q[:, 1::2]
    packed = (low & 15).to(torch.uint8)
    packed[:, : high.shape[1]] |= (high & 15).to(torch.uint8) << 4
    return packed


def group_size(name: str, in_features: int) -> int:
    """Return how many input features of an int4 weight share a scale; `UserError` if no number fits.

    There are at least two groups where that is possible: a single one would be a scale per channel again.
    """
    fitting = [group for group in GROUPS if in_features % group == 0]
    if not fitting:
        advice = f"give {spelled('lm_head_precision')} int8" if name == HEAD else "convert the model to int8"
        raise UserError(
            f"backend tensorrt: expected int4 weights whose input features are a multiple of {GROUPS[-1]}, found "
            f"{in_features} in {name}; {advice}"
        )
    return next((group for group in fitting if group < in_features), fitting[0])
