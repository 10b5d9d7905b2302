"""An engine for a GPU without a compiler: its own programs run eagerly, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from opt_trt.backends.engine import EngineConfig
from opt_trt.backends.inductor.builder.cuda_programs import CudaPrograms
from opt_trt.backends.inductor.builder.layout import engine_tensors, packed_tensors
from opt_trt.backends.inductor.builder.limits import resolve_limits
from opt_trt.backends.inductor.decoder.cuda import CudaDecoder, cuda_forward
from opt_trt.backends.inductor.decoder.loading import RankModel, rank_model
from opt_trt.backends.inductor.decoder.program_table import CudaProgramTable
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.convert_flags import ConvertConfig
from opt_trt.convert.convert import convert
from opt_trt.graph.programs import GraphShapes, ProgramSpec
from opt_trt.ops import ALONE, Collectives
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.buckets import Bound, bounds_for
from opt_trt.plugins.cuda.graphs import put
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice, Tactic
from opt_trt.plugins.tune.common import gemm_problems
from tests.triton._problems import on_gpu
from tests.unit._cuda_engine import AtOnce, Rerun


class Eager:
    """A program that was not compiled, and the number of its runs."""

    def __init__(self, spec: ProgramSpec) -> None:
        _, self._tree = tree_flatten(spec.args)
        self._module = spec.module
        self.runs = 0

    def run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        self.runs += 1
        return self._module(*tree_unflatten(inputs, self._tree))


@dataclass(frozen=True)
class Uncompiled:
    """A decoder, its programs, and the steps that were captured for it, in order."""

    decoder: CudaDecoder
    programs: dict[str, Eager]
    captured: list[Rerun]

    def used(self) -> set[str]:
        """Return the names of the programs that ran."""
        return {name for name, program in self.programs.items() if program.runs}


def uncompiled(
    model_dir: Path, work: Path, context: str, device: str, weight_only: str | None = None, **flags: object
) -> Uncompiled:
    """Convert a Hugging Face model into `work`, and open it as an engine of fp16 on a GPU."""
    quantize = {"use_weight_only": True, "weight_only_precision": weight_only, "defer_quantization": True}
    convert(
        ConvertConfig(
            model_dir=str(model_dir), output_dir=str(work), dtype="float16", log_level="warning",
            **(quantize if weight_only else {}),
        )
    )  # fmt: skip
    prepared = Prepared(work, 0, **flags)
    programs = prepared.programs(device)
    assert tuple(programs) == prepared.table.names()
    captured: list[Rerun] = []

    def capture(run: Callable[[], torch.Tensor]) -> Rerun:
        captured.append(Rerun(run))
        return captured[-1]

    forward = cuda_forward(prepared.config, prepared.model(programs, device), context)
    decoder = CudaDecoder(forward, capture, put if device == "cuda" else AtOnce())
    return Uncompiled(decoder, programs, captured)


class Prepared:
    """The results of a build for one rank of a checkpoint, without those of the compiler."""

    def __init__(self, directory: Path, rank: int, **flags: object) -> None:
        self.rank, self.checkpoint = rank, Checkpoint(directory, rank)
        self.limits = resolve_limits(self.checkpoint.config, BuildConfig(checkpoint_dir=str(directory), **flags))
        model, build = self.limits.model, self.limits.build_config
        self.table, self.plan = CudaProgramTable.of(model, build), fixed_plan(self.checkpoint, self.limits)
        self.config = EngineConfig(model, build, "inductor", {"type": "cuda"}, "", {}, "")

    def programs(self, device: str, collectives: Collectives = ALONE) -> dict[str, Eager]:
        """Return all programs of the engine by name."""
        model, directory = self.limits.model, self.checkpoint.directory
        ends = [Checkpoint(directory, rank) for rank in (0, model.mapping.world_size - 1)]
        tensors = {
            name: (spec.shape, spec.dtype) for end in ends for name, spec in engine_tensors(end, self.plan).items()
        }
        shapes = GraphShapes(self.limits.build_config.tokens_per_block, tensors, torch.float16, device)
        specs = CudaPrograms(model, self.table, self.plan, shapes, collectives).specs()
        return {spec.name: Eager(spec) for spec in specs}

    def model(self, programs: dict[str, Eager], device: str) -> RankModel:
        """Return the programs with the rank's weights."""
        weights = {name: tensor.to(device) for name, tensor in packed_tensors(self.checkpoint, self.plan)}
        return rank_model(programs, weights, self.config, self.rank)


def fixed_plan(checkpoint: Checkpoint, limits) -> TacticPlan:
    """Return a plan with one tactic of each kind, in the buckets that it is for."""
    problems = {site: on_gpu(problem) for site, problem in gemm_problems(checkpoint.config).items()}
    table = CudaProgramTable.of(limits.model, limits.build_config)
    layer = Choice(padded.PADDED, tuple(product_of(bound) for bound in bounds_for(table.tokens)))
    head = Choice(padded.PADDED, tuple(product_of(bound) for bound in bounds_for(table.logits)))
    choices = {site: head if site == "head" else layer for site in problems}
    generating = [attention.SPLIT_KEYS[i % 2] for i, _ in enumerate(bounds_for(table.sequences))]
    return TacticPlan(problems, choices, Choice(attention.PAGED, (*generating, attention.FLASH, attention.HALF_FLASH)))


def product_of(bound: Bound) -> Tactic:
    """Return a tactic of products for a bucket."""
    if bound is None:
        return gemm.CUBLAS
    return gemm.GEMV[0] if bound <= gemm.MOST_GEMV_TOKENS else gemm.SPLIT[1]
