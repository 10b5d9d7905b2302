"""Build an embedded engine: choose tactics, compile the programs, lay out the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from opt_trt.backends.checksums import checksums_of, samples_of
from opt_trt.backends.engine import CONFIG, WEIGHTS, EngineConfig, rank_metadata
from opt_trt.backends.inductor.builder.cpu import CpuTarget
from opt_trt.backends.inductor.builder.layout import engine_tensors, packed_tensors
from opt_trt.backends.inductor.builder.limits import resolve_limits
from opt_trt.backends.inductor.builder.packaging import package
from opt_trt.backends.inductor.builder.tables import print_plan, profile_table, tactic_table
from opt_trt.backends.inductor.builder.target import Compiled, Target
from opt_trt.backends.inductor.profiler.ceilings import measure_ceilings
from opt_trt.backends.inductor.profiler.step_profile import profile_engine
from opt_trt.checkpoint.fingerprint import fingerprint
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.checkpoint.writer import write_rank
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError, spelled
from opt_trt.host.cpu_quota import threads_line
from opt_trt.host.progress import Progress
from opt_trt.host.workers import for_each
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.cuda.gpu import target_gpu, visible_gpu
from opt_trt.plugins.native.library import find_compiler
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import winners
from opt_trt.plugins.tune.common import chosen_us


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
    """Write `config.json`, and the compiled programs and weights of every rank, into the empty directory `out`.

    Return what to print once the engine is in its place.
    Each program is compiled once: all ranks of a stage share their programs, and all stages share those of layers.
    """
    target = _target(checkpoint.config, config)
    limits = resolve_limits(checkpoint.config, config)
    model = limits.model
    if config.dry_run:
        print_plan(checkpoint, config, limits, target)
        return ""
    find_compiler()
    ranks = [checkpoint.of_rank(rank) for rank in range(model.mapping.world_size)]
    with Progress((*target.stages, "weights")) as progress:
        compiled = target.compile(ranks, config, limits, progress)
        package(compiled.programs, model.mapping, out)
        progress.done()
        engine = EngineConfig(
            pretrained_config=model,
            build_config=limits.build_config,
            backend="inductor",
            device=compiled.device,
            plugin_library=compiled.library.name if compiled.library else "",
            tactics=winners(compiled.plan.choices()),
            checkpoint=fingerprint(checkpoint.directory),
            tactic_us=chosen_us(compiled.tuned) if compiled.library else {},
        )
        _write_weights(ranks, compiled.plan, engine, config.workers, out)
        progress.done()
    if compiled.library:
        shutil.copyfile(compiled.library, out / compiled.library.name)
    engine = replace(engine, files=checksums_of(out), samples=samples_of(out))
    (out / CONFIG).write_text(json.dumps(engine.to_dict(), indent=2) + "\n")
    return _report(compiled, config, out, model.mapping.world_size) if config.talks else ""


def _report(compiled: Compiled, config: BuildConfig, out: Path, ranks: int) -> str:
    """Return the chosen tactics, and with `detailed` the profile of a step."""
    notes = "".join(f"{note}\n" for note in compiled.notes)
    is_profiled = config.profiling_verbosity == "detailed" and compiled.library
    profile = f"{threads_line(torch.get_num_threads())}\n{_profile(out, ranks)}" if is_profiled else ""
    return tactic_table(compiled.tuned, config.profiling_verbosity) + notes + profile


def _profile(engine_dir: Path, ranks: int) -> str:
    """Profile a step. A build is one process, so for an engine of several ranks return a line that says why not."""
    if ranks == 1:
        return profile_table(profile_engine(engine_dir), measure_ceilings())
    return (
        f"no profile of a step: it takes {ranks} ranks at once, but the build is one process; to see a profile, "
        "convert the model with --tp_size 1 --pp_size 1 and build that\n"
    )


def _target(model: ModelConfig, config: BuildConfig) -> Target:
    """Return the device that the flags ask for; `UserError` says what it cannot build."""
    gpu = target_gpu(config.device, visible_gpu())
    if gpu is None:
        return CpuTarget(target_isa(config.target_isa))
    try:
        from opt_trt.backends.inductor.builder.cuda import (  # triton comes with torch for CUDA only
            CudaTarget,
            check_cuda,
        )
    except ImportError as error:
        raise UserError(
            f"{spelled('device')} cuda: {error}; install the triton that torch {torch.__version__} wants, "
            f"or give {spelled('device')} cpu"
        ) from error
    check_cuda(model, config)
    return CudaTarget(gpu)


def _write_weights(
    ranks: Sequence[Checkpoint], plan: TacticPlan, engine: EngineConfig, workers: int, out: Path
) -> None:
    """Write the weights of all ranks, `workers` ranks at a time; each rank holds one tensor in memory."""

    def write(rank: int) -> None:
        source, path = ranks[rank], out / WEIGHTS.format(rank=rank)
        tensors = packed_tensors(source, plan)
        write_rank(path, engine_tensors(source, plan), tensors, rank_metadata(engine, rank))

    for_each(iter(range(len(ranks))), write, workers)
