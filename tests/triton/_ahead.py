"""Compile every kernel for GPUs that need not be here: `python -m tests.triton._ahead 80 90` prints the results.

It needs a process of its own, because triton decides at its import whether it interprets or compiles kernels.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.kernels.triton_argmax import argmax
from benchmarks.kernels.triton_embedding import embed
from opt_trt.plugins.attention.triton_context import context_attention
from opt_trt.plugins.attention.triton_generation import generation_attention
from opt_trt.plugins.gemm.triton_dequantize import dequantize
from opt_trt.plugins.gemm.triton_gemv import gemv
from opt_trt.plugins.gemm.triton_split import split_gemm
from opt_trt.plugins.rows.triton_layer_norm import layer_norm

Call = Callable[[], object]
HIDDEN, HEADS, BLOCK_TOKENS = 1024, 4, 64


class Absent:
    """A stand-in for a GPU of a compute capability, with all that a compiler asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def gemms(dtype: torch.dtype, whole: bool) -> Iterator[Call]:
    """Yield calls of every product, with each weight type and number of tokens if `whole`."""
    stored = {torch.int8: HIDDEN, torch.uint8: HIDDEN // 2, dtype: HIDDEN} if whole else {torch.uint8: HIDDEN // 2}
    gemvs = ((1, 4), (2, 2), (4, 2), (8, 1)) if whole else ((1, 4),)
    splits = ((16, 1, 64), (16, 8, 32), (32, 4, 64), (32, 4, 32), (64, 1, 32), (64, 4, 64))
    splits = splits if whole else ((64, 4, 64),)
    scale = torch.empty(HIDDEN)
    for kind, stride in stored.items():
        weight = torch.empty(HIDDEN, stride, dtype=kind)
        step = None if kind == dtype else scale
        for op, tactics in ((gemv, gemvs), (split_gemm, splits)):
            for tokens, *tactic in tactics:
                x, residual = torch.empty(2, tokens, HIDDEN, dtype=dtype)
                given = (x, weight, step, scale, residual, HIDDEN, True, dtype, tokens, *tactic)
                yield lambda op=op, given=given: op(*given)
        if step is not None:
            yield lambda weight=weight: dequantize(weight, scale, HIDDEN, dtype)


def attentions(dtype: torch.dtype, whole: bool) -> Iterator[Call]:
    """Yield calls of both phases of attention, with each head size if `whole`."""
    for head_size in (64, 80, 128) if whole else (64,):
        tokens, table, lens = 66, torch.zeros(3, 20, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
        cache = torch.empty(5, 2, HEADS, BLOCK_TOKENS, head_size, dtype=dtype)
        qkv = torch.empty(tokens, 3 * HEADS * head_size, dtype=dtype)
        slots = torch.zeros(tokens, dtype=torch.int64)
        for half_sums in {False, dtype == torch.float16}:
            given = (qkv, cache, slots, torch.zeros(4, dtype=torch.int32), lens, table, half_sums)
            yield lambda given=given: context_attention(*given)
        for splits in (1, 8) if whole else (8,):
            given = (qkv[:3], cache, slots[:3], lens, table, splits)
            yield lambda given=given: generation_attention(*given)


def rows(dtype: torch.dtype, whole: bool) -> Iterator[Call]:
    """Yield calls of the remaining kernels, with each size of row if `whole`."""
    ids = torch.zeros(3, dtype=torch.int64)
    for size in (768, 4096, 12288) if whole else (4096,):
        table, vector = torch.empty(5, size, dtype=dtype), torch.empty(size)
        yield lambda table=table, vector=vector: layer_norm(table, vector, vector, 1e-5)
        yield lambda table=table: embed(ids, ids, table, table)
    yield lambda: argmax(torch.empty(3, 50272))


def main(capabilities: list[int], whole: bool) -> None:
    compiled: list[dict[str, object]] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        made = {"kernel": self.fn.__name__, "sm": capability, "dtype": name, "shared": kernel.metadata.shared}
        compiled.append(made)
        assert kernel.asm["cubin"]

    JITFunction.run = compile_only
    for capability, dtype in itertools.product(capabilities, (torch.float16, torch.bfloat16)):
        driver.set_active(Absent(capability))
        name = str(dtype)
        for calls in (gemms, attentions, rows):
            for call in calls(dtype, whole):
                call()
    print(json.dumps(compiled))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:] if argument.isdigit()], "--whole" in sys.argv)
