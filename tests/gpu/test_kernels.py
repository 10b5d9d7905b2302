"""Kernels at the sizes of real models, where offsets are large and thousands of programs run at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.ops import AttentionInputs, Linear
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.buckets import BUCKETS
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.quant import MODES

DTYPES = ("float16", "bfloat16")
# qkv, fc and proj of 6.7B; fc of 125M; the head of 350M, with an odd number of outputs.
SIZES = ((12288, 4096), (16384, 4096), (4096, 16384), (3072, 768), (50272, 512))


def random_call(problem, tokens):
    """A product and its answer in fp64, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    dtype = getattr(torch, problem.dtype)
    weight = torch.randn(problem.n, problem.k, generator=generator, device="cuda")
    if problem.quantized:
        q, scale = MODES[problem.weight_type].quantize(weight.cpu())
        meant, q, scale = MODES[problem.weight_type].dequantize(q, scale).cuda(), q.cuda(), scale.float().cuda()
    else:
        q, scale = weight.to(dtype), None
        meant = q
    x = torch.randn(tokens, problem.k, generator=generator, device="cuda").to(dtype)
    expected = x.double() @ meant.double().T
    return GemmCall(x, Linear(padded.pack(q, problem), scale), None), expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_type", ["plain", "int8", "int4"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_every_tactic_equals_fp64_in_every_bucket(n, k, weight_type, dtype):
    kind = dtype if weight_type == "plain" else weight_type
    problem = GemmProblem("qkv", n, k, kind, dtype, False, False, "cuda")
    for bucket in (*BUCKETS, None):
        call, expected = random_call(problem, bucket or 300)
        for tactic in gemm.TACTICS:
            if gemm.refusal(tactic, problem, bucket) is None:
                found = gemm.run_gemm(problem, call, tactic, bucket)
                assert torch.equal(found, gemm.run_gemm(problem, call, tactic, bucket)), f"{tactic.name} moves"
                error = float((found.double() - expected).norm() / expected.norm())
                assert error < tactic.tolerance, (tactic.name, bucket)


@pytest.mark.parametrize("tactic", [attention.FLASH, attention.HALF_FLASH], ids=lambda t: t.name)
@pytest.mark.parametrize(("heads", "head_size"), [(16, 64), (32, 80), (32, 128)])
def test_a_long_prompt_attends_as_in_fp32(heads, head_size, tactic):
    tokens, block = 2048, 64
    qkv = torch.randn(tokens, 3, heads, head_size, device="cuda", dtype=torch.float16)
    q, k, v = qkv.float().permute(1, 2, 0, 3)
    expected = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
    cache = torch.full((tokens // block, 2, heads, block, head_size), torch.nan, device="cuda", dtype=torch.float16)
    found = attention.run_attention(tactic, qkv.flatten(1), cache, step_of(tokens, tokens, block))
    assert (found.float() - expected).norm() / expected.norm() < tactic.tolerance


@pytest.mark.parametrize("tactic", attention.SPLIT_KEYS, ids=lambda t: t.name)
def test_a_long_context_generates_as_in_fp32(tactic):
    tokens, block, heads, head_size = 2048, 64, 32, 128
    cache = torch.randn(tokens // block, 2, heads, block, head_size, device="cuda", dtype=torch.float16)
    qkv = torch.randn(1, 3, heads, head_size, device="cuda", dtype=torch.float16)
    found = attention.run_attention(tactic, qkv.flatten(1), cache, step_of(tokens, 1, block))
    k, v = cache.float().permute(1, 2, 0, 3, 4).flatten(2, 3)  # the new token is in its place by now
    expected = functional.scaled_dot_product_attention(qkv[:, 0].float().transpose(0, 1), k, v).flatten()
    assert (found.float() - expected).norm() / expected.norm() < tactic.tolerance


def step_of(tokens, queries, block):
    """One sequence whose blocks lie in order."""

    def of(values):
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    slots = torch.arange(tokens - queries, tokens, device="cuda")
    return AttentionInputs(slots, of([0, queries]), of([tokens]), of([list(range(tokens // block))]))
