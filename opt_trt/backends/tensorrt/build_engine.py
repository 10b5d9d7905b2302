"""Build a TensorRT engine of a checkpoint: plan it, let a process compile it, and describe what became of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from opt_trt.backends.checksums import checksums_of
from opt_trt.backends.engine import CONFIG, PROGRAMS, EngineConfig
from opt_trt.backends.tensorrt.compile_rank import Job
from opt_trt.backends.tensorrt.compiler_process import Compiled, run_compiler
from opt_trt.backends.tensorrt.engine_memory import engine_memory
from opt_trt.backends.tensorrt.engine_plan import EnginePlan, plan_engine
from opt_trt.backends.tensorrt.kernel_report import described_targets, kernel_lines, plan_lines
from opt_trt.backends.tensorrt.kernels import LAYERS_MESSAGE, read_kernels
from opt_trt.backends.tensorrt.library import chooses_gpus, load_library, missing, version
from opt_trt.checkpoint.fingerprint import fingerprint
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.errors import UserError, spelled
from opt_trt.host.atomic import replace_text
from opt_trt.host.disk import check_space, explain_full_disk, size_text
from opt_trt.plugins.cuda.gpu import visible_gpu

RANK = 0  # the only one, see `engine_plan`
NOT_INSTALLED = "tensorrt_rtx (not installed)"


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> str:
    """Write `config.json` and the plan of the rank into the empty directory `out`; a dry run prints the plan alone.

    Return what to print about the engine once it is in its place.
    """
    library = None if config.dry_run and missing() else load_library()
    is_rtx = library is None or chooses_gpus(library)
    plan = plan_engine(checkpoint.config, config, is_rtx)
    memory = engine_memory(checkpoint, plan)
    named = version(library) if library else NOT_INSTALLED
    if config.talks:
        for warning in plan.warnings:
            print(f"note: {warning}")
    if config.dry_run:
        print("\n".join(plan_lines(plan, memory, named, config.output_dir)))
        return ""
    if config.visualize_network and Path(config.visualize_network).is_file():
        raise UserError(
            f"{spelled('visualize_network')} {config.visualize_network} is a file; give the name of a directory"
        )
    needed = memory.weights + memory.code
    check_space(Path(config.output_dir), needed)
    with explain_full_disk(out, needed):
        compiled = run_compiler(_job(checkpoint, config, plan, out, is_rtx), config.talks)
        engine = _describe(checkpoint, plan, named, out)
        (out / CONFIG).write_text(json.dumps(engine.to_dict(), indent=2) + "\n")
    if config.visualize_network:
        _write_lists(Path(config.visualize_network), compiled)
    return _report(config, plan, compiled, named) if config.talks else ""


def _job(checkpoint: Checkpoint, config: BuildConfig, plan: EnginePlan, out: Path, is_rtx: bool) -> Job:
    return Job(
        checkpoint_dir=str(checkpoint.directory),
        packed_sm=checkpoint.config.target_sm,
        rank=RANK,
        shape=asdict(plan.shape),
        logits_dtype=plan.model.logits_dtype,
        lm_head_precision=plan.limits.lm_head_precision,
        target_sms=list(plan.target_sms),
        builder_flags=list(plan.builder_flags),
        fast=config.fast_build,
        plan=str(out / PROGRAMS.format(rank=RANK)),
        input_timing_cache=config.input_timing_cache,
        output_timing_cache=None if is_rtx else config.output_timing_cache,
        lists_network=config.visualize_network is not None,
        is_verbose=config.log_level == "verbose",
    )


def _describe(checkpoint: Checkpoint, plan: EnginePlan, named: str, out: Path) -> EngineConfig:
    """Return the engine's `config.json`; `capabilities` are the GPUs that it runs on, such as `8.9 12.0`."""
    gpu = visible_gpu()
    capabilities = [f"{sm // 10}.{sm % 10}" for sm in plan.target_sms] or ([gpu.capability] if gpu else [])
    library, _, release = named.partition(" ")
    return EngineConfig(
        pretrained_config=plan.model,
        build_config=plan.limits,
        backend="tensorrt",
        device={"type": "cuda", "library": library, "version": release, "capabilities": " ".join(capabilities)},
        plugin_library="",
        tactics={},
        checkpoint=fingerprint(checkpoint.directory),
        files=checksums_of(out),
    )


def _write_lists(directory: Path, compiled: Compiled) -> None:
    """Write the layers of the network and the kernels of the engine, a line each."""
    directory.mkdir(parents=True, exist_ok=True)
    kernels = next((m for m in compiled.messages if m.startswith(LAYERS_MESSAGE)), "")
    for what, text in (("network", "\n".join(compiled.network)), ("kernels", kernels)):
        replace_text(directory / f"rank{RANK}.{what}.txt", text + "\n")


def _report(config: BuildConfig, plan: EnginePlan, compiled: Compiled, named: str) -> str:
    """Return lines that say what was built; `--profiling_verbosity` says how much."""
    lines = [f"{named} for {described_targets(plan.target_sms)}; built and checked, never yet run on a GPU"]
    if config.profiling_verbosity != "none":
        table = read_kernels(compiled.messages, plan.model.num_hidden_layers)
        lines += kernel_lines(table, config.profiling_verbosity == "detailed")
    if config.monitor_memory:
        allocated, peak = size_text(compiled.anonymous_bytes), size_text(compiled.peak_bytes)
        lines.append(f"memory of the build: {allocated} allocated, {peak} with the files that it mapped")
    return "\n".join(lines) + "\n"
