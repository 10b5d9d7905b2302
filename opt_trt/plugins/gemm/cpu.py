"""The tactics of matrix products on a CPU, and the layouts of the weights that they read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.nn import functional

from opt_trt.ops import RELU_SITES, ReferenceOps
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.plugins.tactic import BUCKETS, Tactic
from opt_trt.quant.nibbles import pack_nibbles

LANES = 16
GROUP = 128  # neighbouring features that share a scale in fixed point
QUAD = 4  # features that one instruction multiplies and adds
ROW_MAJOR, INTERLEAVED, QUADS = "row_major", "interleaved", "quads"
BF16, VNNI = "avx512_bf16", "avx512_vnni"
LIBRARY = Tactic("library", ROW_MAJOR)  # torch's
# The other tactics are kernels of the plugin library: a name stands here and in tactics.h, its number only there.
# A name ends in the number of tokens that a kernel holds in registers while weights stream past.

# Products in fp32. A token's sums are taken in one order, whatever tokens come with it.
FP32 = tuple(Tactic(f"fp32_{tokens}", INTERLEAVED) for tokens in (1, 2, 4, 8, 12))
# Instructions that multiply bf16, for models of bfloat16. Activations are rounded by up to 2^-9 of their value.
PAIRS = tuple(Tactic(f"pairs_{tokens}", INTERLEAVED, tolerance=2**-7, needs=BF16) for tokens in (4, 8))
# Instructions that multiply 16-bit integers, for weights of fp16. Activations are rounded as FIXED16 rounds them.
# Weights are rounded by up to 2^-14 of the largest power of two in 128 neighbours; those of an eighth of it and more
# stay exact.
WORDS = (Tactic("words_4", INTERLEAVED, tolerance=2**-13, needs=VNNI),)
# Instructions that multiply bytes, for weights of integers. Activations become two bytes, and 128 neighbours share a
# scale. They are rounded by up to 2^-16 of the largest one: in the mean square of a group, by less than fp16 does.
FIXED16 = tuple(Tactic(f"fixed16_{tokens}", QUADS, tolerance=2**-13, needs=VNNI) for tokens in (1, 2, 4, 8))
# The same with activations of one byte, for --context_int8.
FIXED8 = tuple(Tactic(f"fixed8_{tokens}", QUADS, tolerance=2**-6, needs=VNNI) for tokens in (4, 8))
ROUNDING = (*PAIRS, *WORDS, *FIXED16, *FIXED8)  # they round activations at least
TACTICS = (LIBRARY, *FP32, *ROUNDING)


def refusal(tactic: Tactic, problem: GemmProblem, extras: Collection[str]) -> str | None:
    """Return why a tactic cannot take part, or None; `extras` are processor flags beyond the instruction set."""
    if problem.device != "cpu":
        return f"needs a CPU, found {problem.device}"
    if tactic.layout == QUADS and not problem.quantized:
        return f"{problem.weight_type} weights are no integers"
    if tactic in PAIRS and (problem.dtype != "bfloat16" or problem.weight_type == "float16"):
        return f"{problem.dtype} activations and {problem.weight_type} weights are not rounded to bf16"
    if tactic in WORDS and problem.weight_type != "float16":
        return f"{problem.weight_type} weights are not fp16"
    if tactic in ROUNDING and problem.dtype == "float32":
        return "float32 activations are not rounded"
    return tactic.lacks(extras)


def pack(weight: torch.Tensor, problem: GemmProblem, layout: str) -> torch.Tensor:
    """Lay out a row-major weight [N, K], of int4 held in int8, with zeros beyond N.

    Interleaved is [ceil(N / 16), K, 16]; quads of integers are [ceil(N / 16), ceil(K / 128) * 32, 16 * 4], with zeros
    beyond K, 128 added to each; the quads of a pair share bytes in int4.
    """
    nibbles = problem.weight_type == "int4"
    if layout == ROW_MAJOR:
        return pack_nibbles(weight, 1) if nibbles else weight.contiguous()
    padded = functional.pad(weight, (0, 0, 0, -problem.n % LANES))
    if layout == QUADS:
        padded = functional.pad(padded, (0, -problem.k % GROUP))
        quads = padded.view(-1, LANES, padded.shape[1] // QUAD, QUAD).transpose(1, 2).flatten(2)
        return pack_nibbles(quads, 1) if nibbles else quads.bitwise_xor(-128)
    interleaved = padded.view(-1, LANES, problem.k).transpose(1, 2)
    return pack_nibbles(interleaved, 1) if nibbles else interleaved.contiguous()


def packed_shape(problem: GemmProblem, layout: str) -> tuple[int, ...]:
    """Return the shape of `pack`'s result."""
    packed = 1 + (problem.weight_type == "int4")
    k, groups = -(-problem.k // packed), -(-problem.n // LANES)
    return {
        ROW_MAJOR: (problem.n, k),
        INTERLEAVED: (groups, k, LANES),
        QUADS: (groups, -(-problem.k // GROUP) * GROUP // QUAD // packed, LANES * QUAD),
    }[layout]


def kernel_numbers(operators: Operators, tactics: Sequence[Tactic]) -> list[int]:
    """Return the numbers of the kernels that a problem's buckets take; none if torch computes the product.

    Ask before a program is traced: the numbers are constants in it.
    """
    return [operators.gemm_tactic(tactic.name) for tactic in tactics if tactic != LIBRARY]


def run_gemm(operators: Operators, problem: GemmProblem, call: GemmCall, kernels: Sequence[int]) -> torch.Tensor:
    """Compute the product by the kernel of its bucket, or by torch if there are no kernels."""
    if not kernels:
        return ReferenceOps().gemm(problem.site, call.x, call.linear, call.residual)
    relu = problem.site in RELU_SITES
    return operators.gemm(call.x, *call.linear, call.residual, relu, problem.n, list(BUCKETS), kernels)
