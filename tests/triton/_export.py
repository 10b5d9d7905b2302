"""Export an engine's programs for a GPU where there is none: `python -m tests.triton._export` prints their operations.

`python -m tests.triton._export 2` prints those of two tensor-parallel ranks that share the vocabulary.

It needs a process of its own, because interpreted kernels do not become part of a program.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from opt_trt.backends.inductor.builder.cuda_programs import CudaPrograms
from opt_trt.backends.inductor.decoder.program_table import CudaProgramTable
from opt_trt.graph.decoder import SITES, head_weight_names, layer_weight_names, site_of
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import GraphShapes, ProgramSpec
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ALONE
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.collectives.cuda_group import GroupCollectives
from opt_trt.plugins.cuda.buckets import bounds_for
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import STORED, GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice
from opt_trt.plugins.tune.common import gemm_problems
from tests.triton._engine import product_of
from tests.triton._layers import HIDDEN, model

OURS = ("opt_trt.", "_c10d_functional.all_")  # operations that are ours, and those between ranks
TABLE = CudaProgramTable(sequences=2, tokens=100, logits=2, has_half_sums=True)


def shape_of(name: str, problems: dict[str, GemmProblem]) -> tuple[tuple[int, ...], torch.dtype]:
    """Return the shape and dtype that an engine stores under a name.

    Vectors that belong to no product have the size of the hidden states.
    """
    if name in EMBEDDING_WEIGHTS:
        return (100, HIDDEN), torch.float16
    if (site := site_of(name)) is not None:
        return padded.packed_shape(problems[site]), STORED[problems[site].weight_type]
    prefix = name.rpartition(".")[0]
    site = next((site for suffix, site in SITES.items() if prefix.endswith(suffix.removesuffix(".weight"))), None)
    return (problems[site].n if site else HIDDEN,), torch.float32


def programs(weight_type: str | None, tp_size: int) -> list[ProgramSpec]:
    """Specify all programs of an engine; call this where tensors are fake."""
    config = replace(
        model("float16", weight_type, True), mapping=Mapping(tp_size, tp_size), use_parallel_embedding=tp_size > 1
    )
    problems = {site: replace(problem, device="cuda") for site, problem in gemm_problems(config).items()}
    products = {
        site: Choice(
            padded.PADDED,
            tuple(product_of(b) for b in bounds_for(TABLE.logits if site == "head" else TABLE.tokens)),
        )
        for site in problems
    }
    plan = TacticPlan(problems, products, Choice(attention.PAGED, attention.SPLIT_KEYS[:2]))
    names = (*EMBEDDING_WEIGHTS, *layer_weight_names(config, 0), *head_weight_names(config))
    shapes = GraphShapes(32, {name: shape_of(name, problems) for name in names}, torch.float16, "cuda")
    collectives = GroupCollectives(tp_size) if tp_size > 1 else ALONE
    return list(CudaPrograms(config, TABLE, plan, shapes, collectives).specs())


def main(tp_size: int) -> None:
    found = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for spec in programs("int8", tp_size):
            exported = torch.export.export(spec.module, spec.args, dynamic_shapes=spec.dynamic_shapes, strict=False)
            calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
            found[spec.name] = [call.removesuffix(".default") for call in calls if call.startswith(OURS)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
