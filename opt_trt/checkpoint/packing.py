"""Pack quantized weights into the layout that TensorRT-LLM's weight-only kernels read on a GPU, and unpack them.

TensorRT-LLM packs the matrix `[in, out]` in four steps: permute rows in groups, make it column-major, interleave
columns in tiles of 64 rows, then add a bias and shuffle the values inside 32-bit words. A weight `[out, in]` is that
column-major matrix already, and the permutation and the shuffle together are a transpose of small blocks: with
`e = 16 / bits`, every 8·e values of a channel, seen as `[e, 8]`, are stored as `[8, e]`, the first value in the low
bits. Interleaving puts the 64-value pieces of `e` neighbouring channels one after another. Packed blocks of output
features lie one after another, so a tensor may be packed block by block.
"""

from __future__ import annotations

import math

import torch

from opt_trt.errors import UserError

TILE = 64  # rows of the interleaving step
RUN = 8  # values that stay side by side while blocks are transposed: one 64-bit word of int8
INTERLEAVED = {75: True, 80: True, 86: True, 87: True, 89: True, 90: False} | dict.fromkeys(range(100, 120), True)
LATER_SM = 120  # this and all later GPUs read the layout of SM 80
DEFERRED_ONLY = range(100, 120)  # TensorRT-LLM's builder refuses packed weights for these GPUs
KNOWN = "75, 80, 86, 87, 89, 90, 100 to 119, 120 and up"


def is_interleaved(sm: int) -> bool:
    """Return whether kernels of a GPU (80: compute capability 8.0) read interleaved columns; refuse unknown GPUs."""
    if sm >= LATER_SM:
        return True
    if sm not in INTERLEAVED:
        raise UserError(f"SM {sm} has no known weight-only layout; known are {KNOWN}")
    return INTERLEAVED[sm]


def check_packable(sm: int, advice: str) -> None:
    """Refuse a GPU for which weights cannot be packed; the error ends with `advice`."""
    is_interleaved(sm)
    if sm in DEFERRED_ONLY:
        raise UserError(f"target_sm {sm}: TensorRT-LLM's builder refuses packed weights on SM 100 to 119; {advice}")


def shape_problems(out_features: int, in_features: int, bits: int, sm: int) -> list[str]:
    """List the reasons why a matrix cannot be packed, one for each dimension; empty if it can."""
    group = TILE if is_interleaved(sm) else RUN * 16 // bits
    vector = 256 // bits  # the transpose moves 32 bytes of a row and of a column
    needs = (
        ("input features", in_features, math.lcm(group, vector)),
        ("output features", out_features, math.lcm(8, vector)),
    )
    return [f"{found} {what} must be a multiple of {step}" for what, found, step in needs if found % step]


def pack(q: torch.Tensor, bits: int, sm: int) -> torch.Tensor:
    """Pack integers `[out, in]` in int8 into the stored tensor `[in, out * bits / 8]` in int8.

    `UserError` names the dimensions that do not fit the layout.
    """
    out_features, in_features = q.shape
    runs = q.contiguous().view(torch.int64).view(_runs_shape(out_features, in_features, bits, sm))
    digits = runs.permute(4, 0, 2, 1, 3).contiguous().view(torch.int8)  # [e, groups, tiles, columns, blocks * RUN]
    word = digits[-1].to(torch.int16)
    for digit in reversed(range(len(digits) - 1)):
        word = word.mul_(2**bits).add_(digits[digit])  # modulo 2^16
    bias = sum(2 ** (bits - 1) << shift for shift in range(0, 16, bits))
    return word.add_(bias - 2**16).view(torch.int8).view(in_features, out_features * bits // 8)


def unpack(packed: torch.Tensor, bits: int, sm: int) -> torch.Tensor:
    """Unpack a stored tensor `[in, out * bits / 8]` into integers `[out, in]` in int8; the inverse of `pack`."""
    in_features, out_features = packed.shape[0], packed.shape[1] * 8 // bits
    groups, columns, tiles, blocks, _ = _runs_shape(out_features, in_features, bits, sm)
    word = packed.contiguous().view(-1).view(torch.int16).view(groups, tiles, columns, blocks * RUN)
    runs = stored_integers(word, bits).view(torch.int64).permute(1, 3, 2, 4, 0)
    return runs.contiguous().view(torch.int8).view(out_features, in_features)


def stored_integers(word: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the `16 / bits` integers of each 16-bit word of packed bytes, `[16 / bits, *word.shape]` in int8.

    The values are the same for all GPUs; their places in the matrix depend on the GPU.
    """
    mask, bias = 2**bits - 1, 2 ** (bits - 1)
    return torch.stack([((word >> shift) & mask).sub_(bias).to(torch.int8) for shift in range(0, 16, bits)])


def _runs_shape(out_features: int, in_features: int, bits: int, sm: int) -> tuple[int, int, int, int, int]:
    """Return the axes of a matrix in runs of 8 values.

    They are groups of columns, columns of a group, tiles of a column, blocks of a tile, and runs of a block.
    """
    if problems := shape_problems(out_features, in_features, bits, sm):
        raise UserError(f"a [{out_features}, {in_features}] weight cannot be packed: {'; '.join(problems)}")
    runs = 16 // bits
    columns, tile = (runs, TILE) if is_interleaved(sm) else (1, RUN * runs)
    return out_features // columns, columns, in_features // tile, tile // (RUN * runs), runs
