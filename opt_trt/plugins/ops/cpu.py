"""The operations of a graph on a CPU, computed by the tactics that a build has chosen."""

from __future__ import annotations

import torch

from opt_trt.ops import ALONE, AttentionInputs, Collectives, Linear, ReferenceOps
from opt_trt.plugins.attention.cpu import kernel_number, run_attention
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm.cpu import kernel_numbers, run_gemm
from opt_trt.plugins.gemm.problem import GemmCall
from opt_trt.plugins.ops.plan import TacticPlan


class PluginOps:
    """`Ops` by plan."""

    def __init__(self, operators: Operators, plan: TacticPlan, collectives: Collectives = ALONE) -> None:
        self._operators, self._collectives = operators, collectives
        self._problems = plan.problems
        self._gemm = {site: kernel_numbers(operators, choice.tactics) for site, choice in plan.gemm.items()}
        self._attention = kernel_number(operators, plan.attention.tactics[-1])  # that of several queries

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Ops.gemm`; the weight has the layout of the site's choice."""
        return run_gemm(self._operators, self._problems[site], GemmCall(x, linear, residual), self._gemm[site])

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """See `Ops.attention`."""
        return run_attention(self._operators, self._attention, (qkv, kv_cache), step)

    def embedding(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`; the compiler has a kernel of its own for it."""
        return ReferenceOps().embedding(ids, table)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.layer_norm`."""
        return self._operators.layer_norm(x, weight, bias, epsilon)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`."""
        return self._collectives.all_reduce(x)

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        return self._collectives.all_gather(x, features)
