"""A whole decoder layer on the GPU's tactics is the reference's, in both phases."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.plugins.attention import cpu as cpu_attention
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.cuda.buckets import BUCKETS
from opt_trt.plugins.gemm import cpu as cpu_gemm
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from tests.triton._layers import HIDDEN, layer_pair
from tests.triton._problems import Shape, attention_step

SHAPE = Shape(2, 64, 32)
CASES = (
    (None, "float16", True), ("int8", "float16", False), ("int4", "bfloat16", True), (None, "bfloat16", False)
)  # fmt: skip
slow = pytest.mark.slow


def computed(pair, layer, lens, queries, device):
    """What the plain layer and `layer` make of one step."""
    dtype = getattr(torch, pair.config.dtype)
    problem = attention_step(SHAPE, dtype, lens, queries)
    used = problem.to(device)
    x = torch.randn(sum(queries), HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = pair.plain()(x.float(), pair.meant, problem.kv_cache.float(), list(astuple(problem.step)))
    weights = [w.to(device) for w in pair.stored]
    return expected, layer(x.to(device), weights, used.kv_cache, list(astuple(used.step))).cpu()


@pytest.mark.parametrize(
    ("weight_type", "dtype", "pre_norm"), [CASES[0], *(pytest.param(*c, marks=slow) for c in CASES[1:])]
)
@pytest.mark.parametrize(
    ("most_tokens", "product", "attend", "lens", "queries"),
    [
        (4, gemm.GEMV[1], attention.SPLIT_KEYS[1], (40, 1, 70), (1, 1, 1)),
        pytest.param(16, gemm.SPLIT[1], attention.SPLIT_KEYS[0], (40, 1, 70), (1, 1, 1), marks=slow),
        (16, gemm.NARROW[0], attention.FLASH, (12, 33), (12, 1)),
        (None, gemm.CUBLAS, attention.FLASH, (30, 37), (30, 37)),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_a_layer_equals_the_reference(
    weight_type, dtype, pre_norm, most_tokens, product, attend, lens, queries, device
):
    pair = layer_pair(dtype, weight_type, pre_norm)
    expected, found = computed(pair, pair.on_gpu(most_tokens, product, attend), lens, queries, device)
    assert found.dtype == getattr(torch, dtype)
    # Five roundings of activations on the way, each of half a unit in the last place of its largest value.
    bound = {"float16": 2**-8, "bfloat16": 2**-4}[dtype]
    assert (found.float() - expected).abs().max() < bound * expected.abs().max()


def product_problem(**changes):
    return GemmProblem(**{
        "site": "fc", "n": 64, "k": 64, "weight_type": "int8", "dtype": "float16", "bias": True, "residual": False,
        "device": "cuda", **changes,
    })  # fmt: skip


def attention_problem(**changes):
    return AttentionProblem(**{
        "phase": "generation", "heads": 2, "head_size": 64, "dtype": torch.float16, "tokens_per_block": 32,
        "queries": 1, "kv_len": 5, "device": "cuda", **changes,
    })  # fmt: skip


@pytest.mark.parametrize("tactic", gemm.TACTICS, ids=lambda t: t.name)
def test_products_of_a_gpu_refuse_a_cpu_and_fp32(tactic):
    assert gemm.refusal(tactic, product_problem(device="cpu"), 1) == "needs a GPU, found cpu"
    assert "found float32" in gemm.refusal(tactic, product_problem(dtype="float32"), 1)


@pytest.mark.parametrize("tactic", attention.TACTICS, ids=lambda t: t.name)
def test_attention_of_a_gpu_refuses_a_cpu_fp32_and_large_heads(tactic):
    assert attention.refusal(tactic, attention_problem(device="cpu")) == "needs a GPU, found cpu"
    assert "found float32" in attention.refusal(tactic, attention_problem(dtype=torch.float32))
    assert "found 144" in attention.refusal(tactic, attention_problem(head_size=144))


def test_tactics_of_a_cpu_refuse_a_gpu():
    for tactic in cpu_gemm.TACTICS:
        assert cpu_gemm.refusal(tactic, product_problem(), frozenset()) == "needs a CPU, found cuda"
    for tactic in cpu_attention.TACTICS:
        assert cpu_attention.refusal(tactic, attention_problem(), frozenset()) == "needs a CPU, found cuda"


def test_every_bucket_and_phase_has_a_tactic():
    admitted = {
        bucket: [t.name for t in gemm.TACTICS if gemm.refusal(t, product_problem(), bucket) is None]
        for bucket in (*BUCKETS, None)
    }
    gemvs = ["gemv_1", "gemv_2", "gemv_4"]
    sums = ["split_1", "split_2", "split_4", "split_8", "split_16", "narrow_1", "narrow_2", "narrow_4", "narrow_8"]
    assert admitted[8] == [*gemvs, *sums, "cublas"]
    assert admitted[16] == [*sums, "cublas"]
    assert admitted[None] == ["cublas"]
    context = attention_problem(phase="context", dtype=torch.bfloat16)
    assert [t.name for t in attention.TACTICS if attention.refusal(t, context) is None] == ["flash"]
    assert attention.refusal(attention.HALF_FLASH, attention_problem(phase="context")) is None
