"""The tactics of matrix products on a GPU. All read weights of one layout, so each bucket of tokens has its own."""

from __future__ import annotations

import torch
from torch.nn import functional

from opt_trt.ops import RELU_SITES
from opt_trt.plugins.cuda.buckets import BUCKETS
from opt_trt.plugins.gemm.cuda_layout import PADDED
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.plugins.gemm.triton_dequantize import dequantize
from opt_trt.plugins.gemm.triton_gemv import gemv
from opt_trt.plugins.gemm.triton_split import STAGES, split_gemm
from opt_trt.plugins.tactic import Tactic

MOST_GEMV_TOKENS = 8
WIDE_SITES = frozenset({"head"})  # results in fp32: differences of logits are small beside the logits
# Tolerances allow for one rounding of the result, and cuBLAS's also for one of each dequantized weight.
# The number of GEMV is that of the rows a thread multiplies with the same activations.
GEMV = tuple(Tactic(f"gemv_{turns}", PADDED, turns, tolerance=2**-7) for turns in (1, 2, 4))
# The number is that of the programs that share a sum. A program has 64 outputs in SPLIT, and 32 in NARROW.
SPLIT = tuple(Tactic(f"split_{splits}", PADDED, splits, tolerance=2**-7) for splits in (1, 2, 4, 8, 16))
NARROW = tuple(Tactic(f"narrow_{splits}", PADDED, splits, tolerance=2**-7) for splits in (1, 2, 4, 8))
CUBLAS = Tactic("cublas", PADDED, tolerance=2**-6)
TACTICS = (*GEMV, *SPLIT, *NARROW, CUBLAS)


def refusal(tactic: Tactic, problem: GemmProblem, most_tokens: int | None) -> str | None:
    """Return why a tactic cannot take part in a bucket, or None; `most_tokens` is None for the open bucket."""
    if problem.device != "cuda":
        return f"needs a GPU, found {problem.device}"
    if problem.dtype not in ("float16", "bfloat16"):
        return f"needs activations of float16 or bfloat16, found {problem.dtype}"
    if tactic in GEMV and (most_tokens is None or most_tokens > MOST_GEMV_TOKENS):
        return f"is for {MOST_GEMV_TOKENS} tokens at most"
    if tactic in (*SPLIT, *NARROW) and most_tokens is None:
        return f"is for {BUCKETS[-1]} tokens at most"
    return None


def run_gemm(problem: GemmProblem, call: GemmCall, tactic: Tactic, most_tokens: int | None) -> torch.Tensor:
    """Compute `act(x [T, K] @ weight.T * scale + bias) + residual` → [T, N], of at most `most_tokens` tokens.

    The result has the type of `x`, or fp32 for WIDE_SITES.
    """
    out_dtype = torch.float32 if problem.site in WIDE_SITES else call.x.dtype
    if tactic == CUBLAS:
        return _library(problem, call).to(out_dtype)
    assert most_tokens is not None, tactic
    fused = (call.x, *call.linear, call.residual, problem.n, problem.site in RELU_SITES, out_dtype)
    if tactic in GEMV:
        y: torch.Tensor = gemv(*fused, most_tokens, tactic.parameter)
    else:
        y = split_gemm(*fused, max(most_tokens, min(STAGES)), tactic.parameter, 32 if tactic in NARROW else 64)
    return y


def _library(problem: GemmProblem, call: GemmCall) -> torch.Tensor:
    """Compute the product by cuBLAS from dequantized weights, fp32; the compiler fuses what follows."""
    x, (weight, scale, bias) = call.x, call.linear
    wide = weight.narrow(1, 0, problem.k) if scale is None else dequantize(weight, scale, problem.k, x.dtype)
    y = functional.linear(x, wide).float()
    y = y if bias is None else y + bias
    y = y.relu() if problem.site in RELU_SITES else y
    return y if call.residual is None else y + call.residual
