"""Layer norm: one program normalizes one row, with sums in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.library import triton_op

from opt_trt.plugins.cuda.kernel_launch import launcher, power_of_two

VALUES_PER_WARP = 1024


@triton.jit
def layer_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    EPSILON: tl.constexpr,  # as an argument, a compiled program would pass a double
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
) -> None:
    """Normalize, in program i, row i."""
    line = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, PADDED_SIZE)
    inside = at < SIZE
    values = tl.load(x + line + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / SIZE
    deviation = tl.where(inside, values - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(deviation * deviation, 0) / SIZE + EPSILON)
    y = deviation * scale * tl.load(weight + at, mask=inside, other=0.0) + tl.load(bias + at, mask=inside, other=0.0)
    tl.store(out + line + at, y.to(out.dtype.element_ty), mask=inside)


@triton_op("opt_trt::layer_norm", mutates_args={})
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Normalize the rows of `x` [T, E]; weight and bias are fp32 [E]."""
    tokens, size = x.shape
    out = torch.empty_like(x)
    padded_size = power_of_two(size)
    launcher(layer_norm_kernel)[(tokens,)](
        x, weight, bias, out, EPSILON=epsilon, SIZE=size, PADDED_SIZE=padded_size,
        num_warps=min(16, max(1, padded_size // VALUES_PER_WARP)),
    )  # fmt: skip
    return out
