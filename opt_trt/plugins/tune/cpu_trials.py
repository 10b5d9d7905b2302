"""Random problems of a CPU's kernels, like those of a decoder, to be run by any tactic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle

import torch

from opt_trt.ops import AttentionInputs, Linear
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import STORED, GemmCall, GemmProblem
from opt_trt.plugins.tactic import BUCKETS, Tactic
from opt_trt.quant import MODES

COLD_BYTES, MOST_COPIES = 2**27, 128  # copies of a weight fill more than caches hold


def random_linears(problem: GemmProblem) -> dict[str, Iterator[Linear]]:
    """Return one random weight, as a plain or quantized checkpoint has it, in every layout.

    A layout that our kernels read has several copies, which take turns: in an engine, no cache still holds a weight
    when it is needed again.
    """
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(problem.n, problem.k, generator=generator)
    bias = torch.randn(problem.n, generator=generator) if problem.bias else None
    scale = None
    if problem.quantized:
        weight, scale = MODES[problem.weight_type].quantize(weight)
    else:
        weight = weight.to(STORED[problem.weight_type])
    layouts = (gemm.ROW_MAJOR, gemm.INTERLEAVED, *[gemm.QUADS] * problem.quantized)
    packed = {layout: _copies(gemm.pack(weight, problem, layout), layout) for layout in layouts}
    return {layout: cycle([Linear(copy, scale, bias) for copy in copies]) for layout, copies in packed.items()}


def _copies(packed: torch.Tensor, layout: str) -> list[torch.Tensor]:
    if layout == gemm.ROW_MAJOR:
        return [packed]  # the library is the reference, and chosen for many tokens
    count = min(-(-COLD_BYTES // packed.nbytes), MOST_COPIES)
    return [packed, *(packed.clone() for _ in range(count - 1))]


def random_call(problem: GemmProblem, tokens: int, generator: torch.Generator) -> GemmCall:
    """Return normally distributed activations; the caller puts a weight in."""
    x = torch.randn(tokens, problem.k, generator=generator)
    residual = torch.randn(tokens, problem.n, generator=generator) if problem.residual else None
    return GemmCall(x, Linear(torch.empty(0)), residual)


def gemm_run(
    operators: Operators,
    problem: GemmProblem,
    call: GemmCall,
    linears: Callable[[], Mapping[str, Iterator[Linear]]],
    tactic: Tactic,
) -> Callable[[], torch.Tensor]:
    """Return a call of the product by one tactic in every bucket."""
    kernels = gemm.kernel_numbers(operators, [tactic] * (len(BUCKETS) + 1))

    def run() -> torch.Tensor:
        linear = next(linears()[tactic.layout])
        return gemm.run_gemm(operators, problem, replace(call, linear=linear), kernels)

    return run


def attention_run(operators: Operators, problem: AttentionProblem, tactic: Tactic) -> Callable[[], torch.Tensor]:
    """Return a call of attention on one sequence, by a tactic.

    Its cache is full already: repeated appends write the same values again.
    """
    generator = torch.Generator().manual_seed(0)
    blocks = -(-problem.kv_len // problem.tokens_per_block)
    shape = (blocks, 2, problem.heads, problem.tokens_per_block, problem.head_size)
    kv_cache = torch.randn(shape, generator=generator).to(problem.dtype)
    qkv = torch.randn(problem.queries, 3 * problem.heads * problem.head_size, generator=generator)
    step = AttentionInputs(
        slot_mapping=torch.arange(problem.kv_len - problem.queries, problem.kv_len),
        query_start=torch.tensor([0, problem.queries], dtype=torch.int32),
        kv_lens=torch.tensor([problem.kv_len], dtype=torch.int32),
        block_tables=torch.arange(blocks, dtype=torch.int32)[None],
    )
    kernel = attention.kernel_number(operators, tactic)
    return lambda: attention.run_attention(operators, kernel, (qkv, kv_cache), step)
