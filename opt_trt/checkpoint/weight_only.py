"""Turn weights into the tensors of a quantized checkpoint and back, one block of output features at a time.

Besides its input and its output, each function needs a few MiB of memory, whatever the size of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from opt_trt.checkpoint.packing import pack, unpack
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.spec import packed_mode
from opt_trt.quant import ALGORITHMS
from opt_trt.quant.mode import QuantMode, scale_name

BLOCK_ELEMENTS = 1 << 18  # so that the intermediate fp32 values stay in the processor's cache
BLOCK_ROWS = 64  # a block has a multiple of this many output features, because packing needs it

IntegerBlock = tuple[slice, torch.Tensor, torch.Tensor]  # output features, their integers [out, in] in int8, scales
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
    return _whole(table_blocks(weight, mode), weight.shape, torch.float32)


def table_blocks(weight: torch.Tensor, mode: QuantMode) -> Iterator[IntegerBlock]:
    """Yield what `quantize_table` returns, block by block."""
    for rows in _blocks(*weight.shape):
        yield rows, *mode.quantize(weight[rows].float())


def integers(checkpoint: Checkpoint, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a quantized linear as int8 `[out, in]` and scale `[out]`: unpack it, or quantize it if it was deferred."""
    shape, blocks = integer_blocks(checkpoint, name)
    return _whole(blocks, shape, getattr(torch, checkpoint.config.dtype))


def integer_blocks(checkpoint: Checkpoint, name: str) -> tuple[tuple[int, int], Iterator[IntegerBlock]]:
    """Return the output and input features of a quantized linear, and what `integers` returns, block by block."""
    config, stored = checkpoint.config, checkpoint.tensor(name)
    assert config.quant_algo is not None, name
    mode = ALGORITHMS[config.quant_algo]
    if packed_mode(config) is None:
        out_features, in_features = stored.shape
        return (out_features, in_features), ((rows, q, s) for rows, _, q, s in quantized_blocks(stored, mode))
    assert config.target_sm is not None, name  # check_target_sm
    scale = checkpoint.tensor(scale_name(name))
    blocks = _unpacked_blocks(stored, len(scale), mode, config.target_sm)
    return (len(scale), len(stored)), ((rows, q, scale[rows]) for rows, q in blocks)


def _whole(
    blocks: Iterator[IntegerBlock], shape: Sequence[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale = torch.empty(*shape, dtype=torch.int8), torch.empty(shape[0], dtype=dtype)
    for rows, block, block_scale in blocks:
        q[rows], scale[rows] = block, block_scale
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
