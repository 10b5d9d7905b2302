"""The operations of a graph on a GPU, computed by the tactics that a build has chosen for one bucket of tokens.

Activations and the residual stream have the model's type, fp16 or bf16; sums are fp32.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from opt_trt.ops import ALONE, AttentionInputs, Collectives, Linear
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm.problem import GemmCall
from opt_trt.plugins.ops.plan import BucketPlan
from opt_trt.plugins.rows.triton_layer_norm import layer_norm


class CudaOps:
    """`Ops` by plan. A program that is traced with it serves the steps of one bucket."""

    def __init__(self, plan: BucketPlan, collectives: Collectives = ALONE) -> None:
        self.plan = plan
        self._collectives = collectives

    def gemm(self, site: str, x: torch.Tensor, linear: Linear, residual: torch.Tensor | None = None) -> torch.Tensor:
        """See `Ops.gemm`; the weight is padded, the result has the type of `x`."""
        call = GemmCall(x, linear, residual)
        return gemm.run_gemm(self.plan.problems[site], call, self.plan.gemm[site], self.plan.most_tokens)

    def attention(self, qkv: torch.Tensor, kv_cache: torch.Tensor, step: AttentionInputs) -> torch.Tensor:
        """See `Ops.attention`."""
        return attention.run_attention(self.plan.attention, qkv, kv_cache, step)

    def embedding(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`; the result has the table's type."""
        return functional.embedding(ids, table)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.layer_norm`; weight and bias are fp32, the result has the type of `x`."""
        y: torch.Tensor = layer_norm(x, weight, bias, epsilon)
        return y

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See `Collectives.all_reduce`."""
        return self._collectives.all_reduce(x)

    def all_gather(self, x: torch.Tensor, features: int) -> torch.Tensor:
        """See `Collectives.all_gather`."""
        return self._collectives.all_gather(x, features)
