"""Compile the programs of a CPU's engine, each once for all ranks, and package programs once for each stage."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from torch._inductor.package.package import package_aoti

from opt_trt.backends.engine import PROGRAMS
from opt_trt.backends.inductor.builder.layout import engine_tensors
from opt_trt.backends.inductor.builder.limits import ResolvedLimits
from opt_trt.backends.inductor.compiler.compile import Inductor
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS, communicates
from opt_trt.graph.programs import GraphShapes, embedding_program, head_program, layer_program, stage_programs
from opt_trt.model.mapping import Mapping
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.collectives.native_group import NativeCollectives
from opt_trt.plugins.native.library import NativeLibrary
from opt_trt.plugins.ops.cpu import PluginOps
from opt_trt.plugins.ops.plan import TacticPlan


def submit_embedding(
    first: Checkpoint, compiling: Future[NativeLibrary], compilers: Inductor
) -> dict[str, Future[list[str]]]:
    """Start to compile the embedding, which depends on no tactic.

    With sharded tables, the embedding calls the plugin library: then wait until the library is compiled.
    """
    config = first.config
    tables = {name: (spec.shape, spec.dtype) for name, spec in first.spec.items() if name in EMBEDDING_WEIGHTS}
    ops, extra = ReferenceOps(), ""
    if communicates(config):
        library = compiling.result()
        ops, extra = ReferenceOps(NativeCollectives(library.operators(), config.mapping.tp_size)), library.namespace
    spec = embedding_program(config, ops, GraphShapes(1, tables), EMBEDDING_WEIGHTS)
    return {spec.name: compilers.submit(spec, extra)}


def submit_decoder(
    ranks: Sequence[Checkpoint], chosen: tuple[TacticPlan, NativeLibrary], compilers: Inductor, limits: ResolvedLimits
) -> dict[str, Future[list[str]]]:
    """Start to compile `layer` and `head`; return their files by name."""
    plan, library = chosen
    ops = PluginOps(library.operators(), plan, NativeCollectives(library.operators(), limits.model.mapping.tp_size))
    ends = engine_tensors(ranks[0], plan) | engine_tensors(ranks[-1], plan)  # the first and the last stage
    weights = {name: (t.shape, t.dtype) for name, t in ends.items()}
    shapes = GraphShapes(limits.build_config.tokens_per_block, weights)
    specs = (
        (
            layer_program(limits.model, ops, shapes, layer_weight_names(limits.model, 0)),
            ("qkv", "attention", "dense", "fc", "proj"),
        ),
        (
            head_program(limits.model, ops, shapes, head_weight_names(limits.model, plan.problems["head"].quantized)),
            ("head",),
        ),
    )
    choices = plan.choices()
    return {
        spec.name: compilers.submit(
            spec, (library.namespace, [choices[site] for site in sites]), library.direct_calls()
        )
        for spec, sites in specs
    }


def package(programs: dict[str, list[str]], mapping: Mapping, out: Path) -> None:
    """Write the package of every rank; ranks of a stage have the same one."""
    for stage in range(mapping.pp_size):
        first, *others = (
            out / PROGRAMS.format(rank=rank) for rank in range(mapping.world_size) if mapping.pp_rank(rank) == stage
        )
        kinds = stage_programs(mapping, stage)
        _package({name: files for name, files in programs.items() if name.split("_")[0] in kinds}, first)
        for other in others:
            shutil.copyfile(first, other)


def _package(programs: dict[str, list[str]], out: Path) -> None:
    """Put programs, given by their files, into one package, from which each is loaded by its name."""
    with tempfile.TemporaryDirectory(dir=out.parent) as directory:
        file = Path(directory, "programs.pt2")  # the packager warns about any other suffix
        package_aoti(str(file), {name: [*files] for name, files in programs.items()})
        file.replace(out)
