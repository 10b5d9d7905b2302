"""Turn weights into the tensors of a quantized checkpoint and back, one block of output features at a time.

Besides its input and its output, each function needs a few MiB of memory, whatever the size of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from opt_trt.checkpoint.packing import pack, unpack
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.spec import packed_mode
from opt_trt.quant import ALGORITHMS
from opt_trt.quant.mode import QuantMode, scale_name

BLOCK_ELEMENTS = 1 << 18  # so that the intermediate fp32 values stay in the processor's cache
BLOCK_ROWS = 64  # a block has a multiple of this many output features, because packing needs it

Observe = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]  # called with weight, integers, scales of a block


def quantized_blocks(
    weight: torch.Tensor, mode: QuantMode
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield blocks of a weight `[out, in]`: output features, their part of the weight, its integers, its scales."""
    for rows in _blocks(*weight.shape):
        yield rows, weight[rows], *mode.quantize(weight[rows])


def quantize_and_pack(
    weight: torch.Tensor, mode: QuantMode, sm: int, observe: Observe | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight `[out, in]`; return the packed tensor and the scale that a checkpoint stores."""
    shape, scale_shape = mode.spec(*weight.shape)
    packed, scale = torch.empty(shape, dtype=torch.int8), torch.empty(scale_shape, dtype=weight.dtype)
    stored = packed.view(-1)
    for rows, block, q, block_scale in quantized_blocks(weight, mode):
        scale[rows] = block_scale
        stored[_place(rows, weight.shape[1], mode)] = pack(q, mode.bits, sm).view(-1)
        if observe is not None:
            observe(block, q, block_scale)
    return packed, scale


def unpack_and_dequantize(packed: torch.Tensor, scale: torch.Tensor, mode: QuantMode, sm: int) -> torch.Tensor:
    """Return the weight `[out, in]`, in the dtype of its scale, that a packed tensor and its scale represent."""
    weight = torch.empty(len(scale), len(packed), dtype=scale.dtype)
    for rows, q in _unpacked_blocks(packed, len(scale), mode, sm):
        weight[rows] = mode.dequantize(q, scale[rows])
    return weight


def repack_blocks(packed: torch.Tensor, mode: QuantMode, source_sm: int, target_sm: int) -> torch.Tensor:
    """Pack the integers of a packed tensor again, in the layout of another GPU."""
    out_features, in_features = packed.shape[1] * 8 // mode.bits, len(packed)
    result = torch.empty_like(packed)
    stored = result.view(-1)
    for rows, q in _unpacked_blocks(packed, out_features, mode, source_sm):
        stored[_place(rows, in_features, mode)] = pack(q, mode.bits, target_sm).view(-1)
    return result


def quantize_table(weight: torch.Tensor, mode: QuantMode) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a table `[out, in]` of any float dtype; return integers in int8 and scales `[out]` in fp32."""
    q, scale = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for rows in _blocks(*weight.shape):
        q[rows], scale[rows] = mode.quantize(weight[rows].float())
    return q, scale


def integers(checkpoint: Checkpoint, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a quantized linear as int8 `[out, in]` and scale `[out]`: unpack it, or quantize it if it was deferred."""
    config, stored = checkpoint.config, checkpoint.tensor(name)
    assert config.quant_algo is not None, name
    mode = ALGORITHMS[config.quant_algo]
    if packed_mode(config) is None:
        q, scale = torch.empty(stored.shape, dtype=torch.int8), torch.empty(len(stored), dtype=stored.dtype)
        for rows, _, block, block_scale in quantized_blocks(stored, mode):
            q[rows], scale[rows] = block, block_scale
        return q, scale
    assert config.target_sm is not None, name  # check_target_sm
    scale = checkpoint.tensor(scale_name(name))
    q = torch.empty(len(scale), len(stored), dtype=torch.int8)
    for rows, block in _unpacked_blocks(stored, len(scale), mode, config.target_sm):
        q[rows] = block
    return q, scale


def _unpacked_blocks(
    packed: torch.Tensor, out_features: int, mode: QuantMode, sm: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield blocks of output features of a packed tensor with their integers."""
    in_features, stored = len(packed), packed.contiguous().view(-1)
    for rows in _blocks(out_features, in_features):
        yield rows, unpack(stored[_place(rows, in_features, mode)].view(in_features, -1), mode.bits, sm)


def _blocks(out_features: int, in_features: int) -> Iterator[slice]:
    """Cut the output features into blocks."""
    count = max(BLOCK_ROWS, BLOCK_ELEMENTS // in_features // BLOCK_ROWS * BLOCK_ROWS)
    return (slice(start, min(start + count, out_features)) for start in range(0, out_features, count))


def _place(rows: slice, in_features: int, mode: QuantMode) -> slice:
    """Return the bytes of a packed tensor that hold some output features."""
    return slice(rows.start * in_features * mode.bits // 8, rows.stop * in_features * mode.bits // 8)
