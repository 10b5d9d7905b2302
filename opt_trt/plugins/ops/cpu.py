"""The operations of a graph, computed by the tactics a build has chosen."""

from __future__ import annotations

import torch

from opt_trt.ops import AttentionInputs, Linear
from opt_trt.plugins.attention.cpu import kernel_number, run_attention
from opt_trt.plugins.collectives.native_group import CollectiveOps
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm.cpu import kernel_numbers, run_gemm
from opt_trt.plugins.gemm.problem import GemmCall
from opt_trt.plugins.ops.plan import Plan


class PluginOps(CollectiveOps):
    """`Ops` by plan; embedding lookup is left to the compiler."""

    def __init__(self, operators: Operators, plan: Plan, tp_size: int = 1) -> None:
        super().__init__(operators, tp_size)
        self._problems = plan.problems
        self._gemm = {site: kernel_numbers(operators, choice.tactics) for site, choice in plan.gemm.items()}
        self._attention = kernel_number(operators, plan.attention.tactics[-1])  # that of several queries

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Ops.gemm`; the weight has the layout of the site's choice."""
        return run_gemm(self.operators, self._problems[site], GemmCall(x, linear, residual), self._gemm[site])

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """See `Ops.attention`."""
        return run_attention(self.operators, self._attention, (qkv, kv_cache), step)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.layer_norm`."""
        return self.operators.layer_norm(x, weight, bias, epsilon)
