"""Random problems like those of a decoder, with their plain answers."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch

from opt_trt.ops import AttentionInputs, Linear, ReferenceOps
from opt_trt.plugins.gemm.cuda_layout import pad_and_pack_rows, pad_rows
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.quant import MODES

WEIGHT_TYPES = ("plain", "int8", "int4")  # plain: the activations' type
# Differences from exact arithmetic on the same rounded inputs, relative to the largest term or result: fp32 sums of
# a few hundred terms in another order; one rounding to the type, for which the interpreter cuts bfloat16 off.
SUMS, ROUNDED = 2e-5, {torch.float16: 2**-11, torch.bfloat16: 2**-7}


def on_gpu(problem: GemmProblem) -> GemmProblem:
    """Return the same product of an engine on a GPU."""
    return replace(problem, device="cuda")


@dataclass(frozen=True)
class Product:
    """A matrix product with everything fused, and its answer in fp32."""

    x: torch.Tensor
    linear: Linear  # weight in the GPU's layout
    residual: torch.Tensor
    meant: torch.Tensor  # fp32 [n, k], what the stored weight stands for
    expected: torch.Tensor  # relu(x @ meant.T + bias) + residual
    largest: float  # the sum of the absolute terms of the largest result

    def bound(self, out_dtype: torch.dtype) -> float:
        rounding = 0.0 if out_dtype == torch.float32 else ROUNDED[out_dtype] * float(self.expected.abs().max())
        return SUMS * self.largest + rounding

    def to(self, device: str) -> Product:
        moved = Linear(*(t if t is None else t.to(device) for t in self.linear))
        return replace(self, x=self.x.to(device), linear=moved, residual=self.residual.to(device))


def product(weight_type: str, dtype: torch.dtype, tokens: int, n: int, k: int) -> Product:
    """Multiply random `x` [tokens, k] by a random weight [n, k]."""
    generator = torch.Generator().manual_seed(tokens * n * k)
    weight = torch.randn(n, k, generator=generator)
    if weight_type in MODES:
        q, scale = MODES[weight_type].quantize(weight)
        meant, scale = MODES[weight_type].dequantize(q, scale).float(), scale.float()
        stored = (pad_and_pack_rows if weight_type == "int4" else pad_rows)(q)
    else:
        meant, scale, stored = weight.to(dtype).float(), None, pad_rows(weight.to(dtype))
    x = torch.randn(tokens, k, generator=generator).to(dtype)
    bias = torch.randn(n, generator=generator)
    residual = torch.randn(tokens, n, generator=generator).to(dtype)
    expected = (x.float() @ meant.T + bias).relu() + residual.float()
    largest = float((x.float().abs() @ meant.abs().T).max())
    return Product(x, Linear(stored, scale, bias), residual, meant, expected, largest)


@dataclass(frozen=True)
class AttentionStep:
    """The attention of one step, and its expected results."""

    qkv: torch.Tensor
    kv_cache: torch.Tensor  # unwritten memory is NaN
    step: AttentionInputs
    expected: torch.Tensor
    expected_cache: torch.Tensor

    def to(self, device: str) -> AttentionStep:
        """Copy the step to a device, with a cache of its own."""
        step = AttentionInputs(*(t.to(device) for t in astuple(self.step)))
        return replace(self, qkv=self.qkv.to(device), kv_cache=self.kv_cache.to(device, copy=True), step=step)


@dataclass(frozen=True)
class Shape:
    """Heads and blocks of a KV cache."""

    heads: int
    head_size: int
    block_tokens: int


def attention_step(shape: Shape, dtype: torch.dtype, lens: tuple[int, ...], queries: tuple[int, ...]) -> AttentionStep:
    """Return a step after which sequences have `lens` tokens, the last `queries` of them new, in scattered blocks."""
    generator = torch.Generator().manual_seed(sum(lens))
    counts = [-(-n // shape.block_tokens) for n in lens]
    blocks = torch.randperm(sum(counts) + 1, generator=generator, dtype=torch.int32)
    tables = torch.zeros(len(lens), max(counts), dtype=torch.int32)
    cache = torch.full((len(blocks), 2, shape.heads, shape.block_tokens, shape.head_size), torch.nan)
    slots = []
    for sequence, (n, new) in enumerate(zip(lens, queries, strict=True)):
        tables[sequence, : counts[sequence]] = blocks[: counts[sequence]]
        blocks = blocks[counts[sequence] :]
        position = torch.arange(n)
        block, offset = tables[sequence, position // shape.block_tokens].long(), position % shape.block_tokens
        cached = torch.randn(n - new, 2, shape.heads, shape.head_size, generator=generator)
        cache[block[: n - new], :, :, offset[: n - new]] = cached
        slots.append((block * shape.block_tokens + offset)[n - new :])
    qkv = torch.randn(sum(queries), 3 * shape.heads * shape.head_size, generator=generator).to(dtype)
    step = AttentionInputs(
        torch.cat(slots),
        torch.tensor([0, *queries]).cumsum(0).int(),
        torch.tensor(lens, dtype=torch.int32),
        tables,
    )
    cache = cache.to(dtype)
    expected_cache = cache.float()
    expected = ReferenceOps().attention(qkv.float(), expected_cache, step)
    return AttentionStep(qkv, cache, step, expected, expected_cache.to(dtype))
