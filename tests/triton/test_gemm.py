"""Matrix products of the GPU's kernels are those of the reference, at odd sizes, whatever comes with a token."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (requirements-dev.txt)")

from opt_trt.plugins.gemm.triton_dequantize import dequantize
from opt_trt.plugins.gemm.triton_gemv import gemv
from opt_trt.plugins.gemm.triton_split import split_gemm
from tests.triton._problems import ROUNDED, WEIGHT_TYPES, product

DTYPES = (torch.float16, torch.bfloat16)
# Outputs and inputs: below a tile, beyond one; a whole tile, an odd number of them.
SIZES = ((5, 200), (70, 130), *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, 1), (64, 128), (70, 384))))
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
weights = pytest.mark.parametrize("weight_type", WEIGHT_TYPES)


def multiplied(problem, op, out_dtype, *tactic):
    n = problem.expected.shape[1]
    return op(problem.x, *problem.linear, problem.residual, n, True, out_dtype, *tactic).cpu()


@both
@weights
@pytest.mark.parametrize("size", [pytest.param((5, 200), marks=pytest.mark.slow), *SIZES[1:]])
def test_gemv_equals_the_reference(weight_type, dtype, size, device):
    for tokens, most, turns in ((1, 1, 4), (3, 4, 2), (8, 8, 1)):
        problem = product(weight_type, dtype, tokens, *size)
        found = multiplied(problem.to(device), gemv, torch.float32, most, turns)
        assert (found - problem.expected).abs().max() <= problem.bound(torch.float32)


@both
@weights
@pytest.mark.parametrize("size", SIZES)
def test_split_sums_equal_the_reference(weight_type, dtype, size, device):
    for tokens, most, splits, rows in ((9, 16, 1, 32), (17, 16, 4, 64), (33, 64, 2, 32), (65, 64, 1, 64)):
        problem = product(weight_type, dtype, tokens, *size)
        found = multiplied(problem.to(device), split_gemm, torch.float32, most, splits, rows)
        assert (found - problem.expected).abs().max() <= problem.bound(torch.float32)


@both
@pytest.mark.parametrize("op, tactic", [(gemv, (4, 2)), (split_gemm, (16, 1, 64)), (split_gemm, (16, 2, 32))], ids=str)
def test_results_are_rounded_once_to_the_activations_type(op, tactic, dtype, device):
    problem = product("int8", dtype, 3, 70, 200)
    found = multiplied(problem.to(device), op, dtype, *tactic)
    assert found.dtype == dtype
    assert (found.float() - problem.expected).abs().max() <= problem.bound(dtype)


@pytest.mark.parametrize("op, tactic", [(gemv, (4, 2)), (split_gemm, (16, 1, 64)), (split_gemm, (16, 2, 32))], ids=str)
def test_bias_relu_and_residual_may_be_missing(op, tactic, device):
    problem = product("int4", torch.float16, 3, 70, 200).to(device)
    weight, scale, _ = problem.linear
    found = op(problem.x, weight, scale, None, None, 70, False, torch.float32, *tactic).cpu()
    fused = multiplied(problem, op, torch.float32, *tactic)
    rest = (found + problem.linear.bias.cpu()).relu() + problem.residual.float().cpu()
    assert found.min() < 0
    assert (rest - fused).abs().max() < 1e-4  # the same sums; only the last additions are taken elsewhere


@weights
@pytest.mark.parametrize("op, tactic", [(gemv, (4, 2)), (split_gemm, (16, 2, 64))], ids=str)
def test_a_token_has_the_same_bits_whatever_comes_with_it(op, tactic, weight_type, device):
    problem = product(weight_type, torch.float16, 4, 20, 384).to(device)
    together = multiplied(problem, op, torch.float32, *tactic)
    weight, scale, bias = problem.linear
    for i in (0, 3):
        x, residual = problem.x[i : i + 1], problem.residual[i : i + 1]
        alone = op(x, weight, scale, bias, residual, 20, True, torch.float32, *tactic).cpu()
        assert torch.equal(alone, together[i : i + 1])


@both
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES[1:])
@pytest.mark.parametrize("size", SIZES)
def test_dequantized_weights_are_those_meant(weight_type, dtype, size, device):
    n, k = size
    problem = product(weight_type, torch.float16, 1, n, k).to(device)
    weight, scale, _ = problem.linear
    found = dequantize(weight, scale, k, dtype).cpu()
    assert (found.float() - problem.meant).abs().max() <= ROUNDED[dtype] * problem.meant.abs().max()
