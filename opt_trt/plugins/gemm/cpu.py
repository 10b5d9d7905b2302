"""The gemm plugin: its problems, its tactics and the layouts their weights are stored in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.nn import functional

from opt_trt.ops import RELU_SITES, ReferenceOps
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.plugins.tactic import BUCKETS, Tactic
from opt_trt.quant.nibbles import pack_nibbles

LANES = 16
GROUP, QUAD = 128, 4  # features that share a scale in fixed point; that one instruction multiplies and adds
ROW_MAJOR, INTERLEAVED, QUADS = "row_major", "interleaved", "quads"
LIBRARY = Tactic("library", ROW_MAJOR, 0)
# Tokens held in registers while weights stream past; the values are run_gemm's in tactics.h. Sums of a token are taken
# in one order, whatever comes with it.
OWN = tuple(Tactic(f"rows_{rows}", INTERLEAVED, rows) for rows in (1, 2, 4, 8, 12))
# Instructions that multiply bf16, for models of bfloat16: activations are rounded by up to 2^-9 of their value.
PAIRS = tuple(Tactic(f"pairs_{rows}", INTERLEAVED, 128 + rows, 2**-7, "avx512_bf16") for rows in (4, 8))
# Instructions that multiply words, for weights of fp16. Activations move as they do by FIXED16; weights by up to 2^-14
# of the largest power of two in 128 neighbours, those of an eighth of it and more not at all.
WORDS = (Tactic("words_4", INTERLEAVED, 192 + 4, 2**-13, "avx512_vnni"),)
# Instructions that multiply bytes, for weights of integers. Activations become two bytes, and 128 neighbours share a
# scale: they move by up to 2^-16 of the largest one, which is less than fp16 moves them in the mean square of a group.
FIXED16 = tuple(Tactic(f"fixed16_{rows}", QUADS, 256 + rows, 2**-13, "avx512_vnni") for rows in (1, 2, 4, 8))
# The same with one byte, if --context_int8 asks for it.
FIXED8 = tuple(Tactic(f"fixed8_{rows}", QUADS, 512 + rows, 2**-6, "avx512_vnni") for rows in (4, 8))
ROUNDING = (*PAIRS, *WORDS, *FIXED16, *FIXED8)  # activations, at least
TACTICS = (LIBRARY, *OWN, *ROUNDING)


def refusal(tactic: Tactic, problem: GemmProblem, extras: Collection[str]) -> str | None:
    """None, or why a tactic cannot take part; `extras` are the flags the processor has beyond its instruction set."""
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
    """Shape of `pack`'s result."""
    packed = 1 + (problem.weight_type == "int4")
    k, groups = -(-problem.k // packed), -(-problem.n // LANES)
    return {
        ROW_MAJOR: (problem.n, k),
        INTERLEAVED: (groups, k, LANES),
        QUADS: (groups, -(-problem.k // GROUP) * GROUP // QUAD // packed, LANES * QUAD),
    }[layout]


def run_gemm(native: Any, problem: GemmProblem, call: GemmCall, layout: str, rows: list[int]) -> torch.Tensor:
    """The product with the winners of its buckets: the library on row-major weights, or the own operator."""
    if layout == ROW_MAJOR:
        return ReferenceOps().gemm(problem.site, call.x, call.linear, call.residual)
    relu = problem.site in RELU_SITES
    y: torch.Tensor = native.gemm(call.x, *call.linear, call.residual, relu, problem.n, list(BUCKETS), rows)
    return y
