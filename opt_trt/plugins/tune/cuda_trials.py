"""Random problems of a GPU's kernels, like those of a decoder, and their reference results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from opt_trt.ops import AttentionInputs, Linear, ReferenceOps
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.cuda.buckets import Bound
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import STORED, GemmCall, GemmProblem
from opt_trt.plugins.tactic import Tactic
from opt_trt.quant.nibbles import pack_nibbles

INTEGERS = {"int8": (-127, 128), "int4": (-8, 8)}
AttentionCall = tuple[torch.Tensor, torch.Tensor, AttentionInputs]
Run = Callable[[], torch.Tensor]


def gemm_weights(problem: GemmProblem, copies: int, device: str) -> list[Linear]:
    """Return equal random weights in the tactics' layout."""
    weight, scale = _plain_weight(problem, device)
    packed, bias = padded.pack(weight, problem), _bias(problem, device)
    return [Linear(packed.clone(), scale, bias) for _ in range(copies)]


def gemm_call(problem: GemmProblem, tokens: int, device: str) -> GemmCall:
    """Return random activations and residual; the caller puts a weight in."""
    generator = torch.Generator(device).manual_seed(tokens)
    dtype = getattr(torch, problem.dtype)
    x = torch.randn(tokens, problem.k, generator=generator, device=device).to(dtype)
    if not problem.residual:
        return GemmCall(x, Linear(torch.empty(0)), None)
    residual = torch.randn(tokens, problem.n, generator=generator, device=device).to(dtype)
    return GemmCall(x, Linear(torch.empty(0)), residual)


def gemm_run(
    problem: GemmProblem, call: GemmCall, weights: Callable[[], Sequence[Linear]], bound: Bound, tactic: Tactic
) -> Run:
    """Return a call that multiplies with each of the weights by a tactic; its result is that of the last weight."""

    def run() -> torch.Tensor:
        for linear in weights():
            result = gemm.run_gemm(problem, replace(call, linear=linear), tactic, bound)
        return result

    return run


def gemm_reference(problem: GemmProblem, call: GemmCall) -> torch.Tensor:
    """Compute the product in fp32, without our kernels."""
    weight, scale = _plain_weight(problem, call.x.device.type)
    stored = pack_nibbles(weight, 1) if problem.weight_type == "int4" else weight
    residual = None if call.residual is None else call.residual.float()
    linear = Linear(stored, scale, _bias(problem, call.x.device.type))
    return ReferenceOps().gemm(problem.site, call.x.float(), linear, residual)


def attention_call(problem: AttentionProblem, sequences: int, device: str) -> AttentionCall:
    """Return sequences of one length, whose cache is full already: repeated appends write the same values again."""
    generator = torch.Generator(device).manual_seed(0)
    width = -(-problem.kv_len // problem.tokens_per_block)
    shape = (sequences * width, 2, problem.heads, problem.tokens_per_block, problem.head_size)
    kv_cache = torch.randn(shape, generator=generator, device=device, dtype=problem.dtype)
    features = 3 * problem.heads * problem.head_size
    tokens = sequences * problem.queries
    qkv = torch.randn(tokens, features, generator=generator, device=device, dtype=problem.dtype)
    first = torch.arange(sequences, device=device)[:, None] * width * problem.tokens_per_block
    slots = first + torch.arange(problem.kv_len - problem.queries, problem.kv_len, device=device)
    step = AttentionInputs(
        slot_mapping=slots.flatten(),
        query_start=torch.arange(0, tokens + 1, problem.queries, device=device, dtype=torch.int32),
        kv_lens=torch.full((sequences,), problem.kv_len, device=device, dtype=torch.int32),
        block_tables=torch.arange(sequences * width, device=device, dtype=torch.int32).view(sequences, width),
    )
    return qkv, kv_cache, step


def attention_reference(call: AttentionCall) -> torch.Tensor:
    """Compute attention in fp32, without our kernels."""
    qkv, kv_cache, step = call
    return ReferenceOps().attention(qkv.float(), kv_cache.float(), step)


def _plain_weight(problem: GemmProblem, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a random weight [N, K], of int4 held in int8, and its scale."""
    generator = torch.Generator(device).manual_seed(1)
    if not problem.quantized:
        weight = torch.randn(problem.n, problem.k, generator=generator, device=device)
        return weight.to(STORED[problem.weight_type]), None
    shape = (problem.n, problem.k)
    q = torch.randint(*INTEGERS[problem.weight_type], shape, generator=generator, device=device, dtype=torch.int8)
    return q, torch.rand(problem.n, generator=generator, device=device) / INTEGERS[problem.weight_type][1]


def _bias(problem: GemmProblem, device: str) -> torch.Tensor | None:
    return torch.linspace(-1.0, 1.0, problem.n, device=device) if problem.bias else None
