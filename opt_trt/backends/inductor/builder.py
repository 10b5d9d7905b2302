"""Build an embedded engine: choose tactics, compile the programs, lay out the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from opt_trt.backends.engine import CONFIG, PROGRAMS, WEIGHTS, EngineConfig, rank_metadata
from opt_trt.backends.gpu import target_gpu, visible_gpu
from opt_trt.backends.inductor.ceilings import measure_ceilings
from opt_trt.backends.inductor.compile import package_programs
from opt_trt.backends.inductor.cpu_maker import CpuMaker
from opt_trt.backends.inductor.isa import target_isa
from opt_trt.backends.inductor.layout import engine_tensors, packed_tensors
from opt_trt.backends.inductor.made import Maker
from opt_trt.backends.inductor.plan import Progress, print_plan, profile_table, resolve_limits, tactic_table
from opt_trt.backends.inductor.profile import profile_engine
from opt_trt.checkpoint import Checkpoint
from opt_trt.checkpoint.fingerprint import fingerprint
from opt_trt.checkpoint.writer import write_rank
from opt_trt.config.build import BuildConfig
from opt_trt.config.flags import TALKATIVE
from opt_trt.config.model import ModelConfig
from opt_trt.errors import UserError
from opt_trt.graph.programs import stage_programs
from opt_trt.mapping import Mapping
from opt_trt.plugins.native import find_compiler
from opt_trt.plugins.ops import Plan
from opt_trt.plugins.tactic import winners
from opt_trt.workers import for_each


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> None:
    """Write `config.json`, and the compiled programs and weights of every rank, into the empty directory `out`.

    Programs are compiled once: all ranks of a stage share them, and all stages share those of layers.
    """
    maker = _maker(checkpoint.config, config)
    limits = resolve_limits(checkpoint.config, config)
    model = limits.model
    if config.dry_run:
        print_plan(checkpoint, config, limits, maker)
        return
    find_compiler()
    ranks = [Checkpoint(checkpoint.directory, rank) for rank in range(model.mapping.world_size)]
    with Progress((*maker.stages, "weights")) as progress:
        made = maker.make(ranks, config, limits, progress)
        _package(made.programs, model.mapping, out)
        progress.done()
        engine = EngineConfig(
            pretrained_config=model,
            build_config=limits.build_config,
            backend="inductor",
            device=made.device,
            plugin_library=made.library.name if made.library else "",
            tactics=winners(made.plan.choices()),
            checkpoint=fingerprint(checkpoint.directory),
        )
        _write_weights(ranks, made.plan, engine, config.workers, out)
        progress.done()
    if made.library:
        shutil.copyfile(made.library, out / made.library.name)
    (out / CONFIG).write_text(json.dumps(engine.to_dict(), indent=2) + "\n")
    if config.log_level in TALKATIVE:
        print(tactic_table(made.table, config.profiling_verbosity), end="")
        if config.profiling_verbosity == "detailed" and model.mapping.world_size == 1 and made.library:
            print(profile_table(profile_engine(out), measure_ceilings()), end="")


def _maker(model: ModelConfig, config: BuildConfig) -> Maker:
    """The side of the device asked for; `UserError` says what it cannot build."""
    gpu = target_gpu(config.device, visible_gpu())
    if gpu is None:
        return CpuMaker(target_isa(config.target_isa))
    try:
        from opt_trt.backends.inductor.cuda_maker import CudaMaker, check_cuda  # triton comes with torch for CUDA only
    except ImportError as error:
        raise UserError(
            f"--device cuda: {error}; install the triton that torch {torch.__version__} wants, or give --device cpu"
        ) from error
    check_cuda(model, config)
    return CudaMaker(gpu)


def _package(programs: dict[str, list[str]], mapping: Mapping, out: Path) -> None:
    """The programs of each rank, packaged once a stage."""
    for stage in range(mapping.pp_size):
        first, *others = (
            out / PROGRAMS.format(rank=rank) for rank in range(mapping.world_size) if mapping.pp_rank(rank) == stage
        )
        kinds = stage_programs(mapping, stage)
        package_programs({name: files for name, files in programs.items() if name.split("_")[0] in kinds}, first)
        for other in others:
            shutil.copyfile(first, other)


def _write_weights(ranks: Sequence[Checkpoint], plan: Plan, engine: EngineConfig, workers: int, out: Path) -> None:
    """The weights of all ranks, `workers` of them at a time; each holds one tensor in memory."""

    def write(rank: int) -> None:
        source, path = ranks[rank], out / WEIGHTS.format(rank=rank)
        tensors = packed_tensors(source, plan)
        write_rank(path, engine_tensors(source, plan), tensors, rank_metadata(engine, rank))

    for_each(iter(range(len(ranks))), write, workers)
