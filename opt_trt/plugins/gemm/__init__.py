"""The gemm plugin: its problems, its tactics and the layouts their weights are stored in."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from opt_trt.ops import RELU_SITES, Linear, ReferenceOps
from opt_trt.plugins.tactic import BUCKETS, Tactic
from opt_trt.quant.nibbles import pack_nibbles

LANES = 16
ROW_MAJOR, INTERLEAVED = "row_major", "interleaved"
LIBRARY = Tactic("library", ROW_MAJOR, 0)
# Tokens held in registers while weights stream past; the values are run_gemm's in tactics.h. Sums of a token are taken
# in one order, whatever comes with it.
OWN = tuple(Tactic(f"rows_{rows}", INTERLEAVED, rows) for rows in (1, 2, 4, 8, 12))
# Instructions that multiply bf16, for models of bfloat16: activations are rounded by up to 2^-9 of their value.
PAIRS = tuple(Tactic(f"pairs_{rows}", INTERLEAVED, 128 + rows, 2**-8, "avx512_bf16") for rows in (4, 8))
TACTICS = (LIBRARY, *OWN, *PAIRS)

STORED = {  # weight type: what its elements are stored as; int4 goes two to a byte, along K
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int8": torch.int8, "int4": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class GemmProblem:
    """One matrix product of the decoder: y [T, n] from x [T, k]."""

    site: str
    n: int
    k: int
    weight_type: str  # one of STORED
    dtype: str  # the model's: what activations may be rounded to
    bias: bool
    residual: bool
    device: str = "cpu"  # or "cuda"

    @property
    def quantized(self) -> bool:
        """Whether the weight is integers, which a scale per output feature goes with."""
        return not STORED[self.weight_type].is_floating_point

    def key(self) -> str:
        """The problem's name in timing caches."""
        extra = "".join(f" {name}" for name in ("bias", "residual") if getattr(self, name))
        relu = " relu" * (self.site in RELU_SITES)
        rounded = " rounded" * (self.dtype == "bfloat16")
        return f"gemm n={self.n} k={self.k} {self.weight_type}{rounded}{extra}{relu}"


def refusal(tactic: Tactic, problem: GemmProblem, extras: Collection[str]) -> str | None:
    """None, or why a tactic cannot take part; `extras` are the flags the processor has beyond its instruction set."""
    if problem.device != "cpu":
        return f"needs a CPU, found {problem.device}"
    if tactic in PAIRS and problem.dtype != "bfloat16":
        return f"{problem.dtype} activations are not rounded to bf16"
    if tactic.needs and tactic.needs not in extras:
        return f"needs {tactic.needs}"
    return None


def pack(weight: torch.Tensor, problem: GemmProblem, layout: str) -> torch.Tensor:
    """Lay out a row-major weight [N, K], of int4 held in int8; interleaved is [ceil(N / 16), K, 16], zeros beyond N."""
    nibbles = problem.weight_type == "int4"
    if layout == ROW_MAJOR:
        return pack_nibbles(weight, 1) if nibbles else weight.contiguous()
    padded = functional.pad(weight, (0, 0, 0, -problem.n % LANES))
    interleaved = padded.view(-1, LANES, problem.k).transpose(1, 2)
    return pack_nibbles(interleaved, 1) if nibbles else interleaved.contiguous()


def packed_shape(problem: GemmProblem, layout: str) -> tuple[int, ...]:
    """Shape of `pack`'s result."""
    k = (problem.k + 1) // 2 if problem.weight_type == "int4" else problem.k
    return (problem.n, k) if layout == ROW_MAJOR else ((problem.n + LANES - 1) // LANES, k, LANES)


@dataclass(frozen=True)
class GemmCall:
    """Tensors of one product, weight in the layout of the tactic that runs."""

    x: torch.Tensor
    linear: Linear
    residual: torch.Tensor | None


def run_gemm(native: Any, problem: GemmProblem, call: GemmCall, layout: str, rows: list[int]) -> torch.Tensor:
    """The product with the winners of its buckets: the library on row-major weights, or the own operator."""
    if layout == ROW_MAJOR:
        return ReferenceOps().gemm(problem.site, call.x, call.linear, call.residual)
    relu = problem.site in RELU_SITES
    y: torch.Tensor = native.gemm(call.x, *call.linear, call.residual, relu, problem.n, list(BUCKETS), rows)
    return y
