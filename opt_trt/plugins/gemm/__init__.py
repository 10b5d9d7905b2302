"""The gemm plugin: its problems, its tactics and the layouts their weights are stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from opt_trt.ops import RELU_SITES, ReferenceOps
from opt_trt.plugins.tactic import BUCKETS, Tactic

LANES = 16
ROW_MAJOR, INTERLEAVED = "row_major", "interleaved"
LIBRARY = Tactic("library", ROW_MAJOR, 0)
# Tokens held in registers while weights stream past; the values are run_gemm's in interleaved.h.
OWN = tuple(Tactic(f"rows_{rows}", INTERLEAVED, rows) for rows in (1, 2, 4, 8, 12))
TACTICS = (LIBRARY, *OWN)


@dataclass(frozen=True)
class GemmProblem:
    """One matrix product of the decoder: y [T, n] from x [T, k]."""

    site: str
    n: int
    k: int
    dtype: torch.dtype
    bias: bool
    residual: bool

    def key(self) -> str:
        """The problem's name in timing caches."""
        extra = "".join(f" {name}" for name in ("bias", "residual") if getattr(self, name))
        relu = " relu" * (self.site in RELU_SITES)
        return f"gemm n={self.n} k={self.k} {str(self.dtype).removeprefix('torch.')}{extra}{relu}"


def pack(weight: torch.Tensor, layout: str) -> torch.Tensor:
    """Lay out a row-major weight [N, K]; interleaved is [ceil(N / 16), K, 16], padded with zeros."""
    if layout == ROW_MAJOR:
        return weight.contiguous()
    n, k = weight.shape
    padded = functional.pad(weight, (0, 0, 0, -n % LANES))
    return padded.view(-1, LANES, k).transpose(1, 2).contiguous()


def packed_shape(n: int, k: int, layout: str) -> tuple[int, ...]:
    """Shape of `pack`'s result."""
    return (n, k) if layout == ROW_MAJOR else ((n + LANES - 1) // LANES, k, LANES)


@dataclass(frozen=True)
class GemmCall:
    """Tensors of one product, weight in the layout of the tactic that runs."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None


def run_gemm(native: Any, problem: GemmProblem, call: GemmCall, layout: str, rows: list[int]) -> torch.Tensor:
    """The product with the winners of its buckets: the library on row-major weights, or the own operator."""
    if layout == ROW_MAJOR:
        return ReferenceOps().gemm(problem.site, call.x, call.weight, call.bias, call.residual)
    relu = problem.site in RELU_SITES
    y: torch.Tensor = native.gemm(call.x, call.weight, call.bias, call.residual, relu, problem.n, list(BUCKETS), rows)
    return y
