"""The programs of a GPU's engine as the compiler needs them: each with the tactics of its bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from opt_trt.backends.inductor.decoder.program_table import CONTEXT, GENERATION, HALF_CONTEXT, CudaProgramTable
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import GraphShapes, ProgramSpec, embedding_program, head_program, layer_program
from opt_trt.model.config import ModelConfig
from opt_trt.ops import ALONE, Collectives
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.cuda.buckets import Bound, bounds_for
from opt_trt.plugins.ops.cuda import CudaOps
from opt_trt.plugins.ops.plan import BucketPlan, TacticPlan
from opt_trt.plugins.tactic import Tactic

CONTEXT_TACTICS = {CONTEXT: attention.FLASH, HALF_CONTEXT: attention.HALF_FLASH}


@dataclass(frozen=True)
class CudaPrograms:
    """All programs of an engine; `plan` comes from `plugins.tune.cuda.tune`."""

    model: ModelConfig
    table: CudaProgramTable
    plan: TacticPlan
    shapes: GraphShapes
    collectives: Collectives = ALONE

    def specs(self) -> Iterator[ProgramSpec]:
        """Specify every program, named as `table` names it."""
        first = self._ops(self.bucket(GENERATION, bounds_for(self.table.sequences)[0]))
        yield embedding_program(self.model, first, self.shapes, EMBEDDING_WEIGHTS)
        for name, (phase, bound) in self.table.layers().items():
            ops = self._ops(self.bucket(phase, bound))
            # The compiler runs kernels on examples of these shapes; those of generation read a length for every token.
            shapes = replace(self.shapes, one_token_each=phase == GENERATION)
            yield replace(layer_program(self.model, ops, shapes, layer_weight_names(self.model, 0)), name=name)
        weights = head_weight_names(self.model, self.plan.problems["head"].quantized)
        for name, bound in self.table.heads().items():
            head = self.plan.gemm["head"].tactics[bounds_for(self.table.logits).index(bound)]
            ops = self._ops(BucketPlan(bound, self.plan.problems, {"head": head}, attention.FLASH))
            yield replace(head_program(self.model, ops, self.shapes, weights), name=name)

    def bucket(self, phase: str, bound: Bound) -> BucketPlan:
        """Return the tactics of a layer."""
        place = bounds_for(self.table.tokens).index(bound)
        products = {site: choice.tactics[place] for site, choice in self.plan.gemm.items() if site != "head"}
        return BucketPlan(bound, self.plan.problems, products, self._attention(phase, bound))

    def _ops(self, plan: BucketPlan) -> CudaOps:
        return CudaOps(plan, self.collectives)

    def _attention(self, phase: str, bound: Bound) -> Tactic:
        if phase in CONTEXT_TACTICS:
            return CONTEXT_TACTICS[phase]
        return self.plan.attention.tactics[bounds_for(self.table.sequences).index(bound)]


def tactics_of(spec: ProgramSpec) -> object:
    """Return what distinguishes a program from others of the same name."""
    ops = spec.module.ops
    assert isinstance(ops, CudaOps), ops
    return ops.plan.most_tokens, ops.plan.gemm, ops.plan.attention
