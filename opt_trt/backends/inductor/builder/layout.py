"""The tensors that an embedded engine stores: weights in the layout that their tactic reads, vectors in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.weight_only import integers, quantize_table
from opt_trt.checkpoint.writer import TensorSpec
from opt_trt.graph.decoder import site_of
from opt_trt.model.placement import is_linear
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.cpu import pack, packed_shape
from opt_trt.plugins.gemm.problem import STORED, GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.quant import MODES
from opt_trt.quant.mode import SCALE, scale_name


def engine_tensors(checkpoint: Checkpoint, plan: TacticPlan) -> dict[str, TensorSpec]:
    """Return name, shape and dtype of every tensor that the engine stores."""
    specs: dict[str, TensorSpec] = {}
    for name, spec in _unscaled(checkpoint):
        if (site := site_of(name)) is None:
            specs[name] = TensorSpec(spec.shape, torch.float32 if len(spec.shape) == 1 else spec.dtype)
            continue
        problem = plan.problems[site]
        specs[name] = TensorSpec(_shape(problem, plan.gemm[site].layout), STORED[problem.weight_type])
        if problem.quantized:
            specs[scale_name(name)] = TensorSpec((problem.n,), torch.float32)
    return specs


def packed_tensors(checkpoint: Checkpoint, plan: TacticPlan) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the engine's tensors, one at a time."""
    for name, spec in _unscaled(checkpoint):
        if (site := site_of(name)) is None:
            tensor = checkpoint.tensor(name)
            yield name, tensor.float() if len(spec.shape) == 1 else tensor
            continue
        problem, layout = plan.problems[site], plan.gemm[site].layout
        if problem.quantized:
            mode = MODES[problem.weight_type]
            whole = is_linear(name)  # the checkpoint has quantized these; the head is quantized here
            q, scale = integers(checkpoint, name) if whole else quantize_table(checkpoint.tensor(name), mode)
            yield name, _packed(q, problem, layout)
            yield scale_name(name), scale.float()
        else:
            yield name, _packed(checkpoint.tensor(name), problem, layout)


def _packed(weight: torch.Tensor, problem: GemmProblem, layout: str) -> torch.Tensor:
    return padded.pack(weight, problem) if layout == padded.PADDED else pack(weight, problem, layout)


def _shape(problem: GemmProblem, layout: str) -> tuple[int, ...]:
    return padded.packed_shape(problem) if layout == padded.PADDED else packed_shape(problem, layout)


def _unscaled(checkpoint: Checkpoint) -> list[tuple[str, TensorSpec]]:
    """List a checkpoint's tensors without the scales, which are stored with their weights."""
    return [(name, spec) for name, spec in checkpoint.spec.items() if not name.endswith(SCALE)]
