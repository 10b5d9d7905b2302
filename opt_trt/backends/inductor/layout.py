"""Which tensors an embedded engine stores, in which layout: weights as their tactic reads them, vectors in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opt_trt.checkpoint import Checkpoint
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.plugins.gemm import pack, packed_shape
from opt_trt.plugins.ops import Plan

SITES = {
    "attention.qkv.weight": "qkv",
    "attention.dense.weight": "dense",
    "mlp.fc.weight": "fc",
    "mlp.proj.weight": "proj",
    "lm_head.weight": "head",
}


def site_of(name: str) -> str | None:
    """The matrix product a checkpoint tensor belongs to, None if it is a table or a vector."""
    return next((site for suffix, site in SITES.items() if name.endswith(suffix)), None)


def engine_tensors(checkpoint: Checkpoint, plan: Plan) -> dict[str, TensorSpec]:
    """Name, shape and dtype of every tensor the engine stores."""
    return {name: _engine_spec(name, spec, plan) for name, spec in checkpoint.spec.items()}


def _engine_spec(name: str, spec: TensorSpec, plan: Plan) -> TensorSpec:
    site = site_of(name)
    if site is not None:
        n, k = spec.shape
        return TensorSpec(packed_shape(n, k, plan.gemm[site].layout), spec.dtype)
    return TensorSpec(spec.shape, torch.float32 if len(spec.shape) == 1 else spec.dtype)


def packed_tensors(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """The engine's tensors one at a time."""
    for name, tensor in checkpoint.tensors():
        site = site_of(name)
        if site is not None:
            yield name, pack(tensor, plan.gemm[site].layout)
        else:
            yield name, tensor.float() if tensor.dim() == 1 else tensor
