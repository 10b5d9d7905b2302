"""The operations of a graph, computed by the tactics a build has chosen."""

from __future__ import annotations

from typing import Any

import torch

from opt_trt.ops import AttentionInputs, Linear
from opt_trt.plugins.attention.cpu import run_attention
from opt_trt.plugins.collectives.native_group import CollectiveOps
from opt_trt.plugins.gemm.cpu import run_gemm
from opt_trt.plugins.gemm.problem import GemmCall
from opt_trt.plugins.ops.plan import Plan


class PluginOps(CollectiveOps):
    """`Ops` by plan; embedding lookup is left to the compiler."""

    def __init__(self, native: Any, plan: Plan, tp_size: int = 1) -> None:
        super().__init__(native, tp_size)
        self.plan = plan

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Ops.gemm`; the weight has the layout of the site's choice."""
        choice = self.plan.gemm[site]
        call = GemmCall(x, linear, residual)
        return run_gemm(self.native, self.plan.problems[site], call, choice.layout, choice.values)

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """See `Ops.attention`."""
        return run_attention(self.native, self.plan.attention.tactics[-1], (qkv, kv_cache), step)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.layer_norm`."""
        y: torch.Tensor = self.native.layer_norm(x, weight, bias, epsilon)
        return y
