"""Build an embedded engine: choose tactics, compile the programs, lay out the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from opt_trt.backends.engine import CONFIG, WEIGHTS, EngineConfig, rank_metadata
from opt_trt.backends.inductor.ceilings import measure_ceilings
from opt_trt.backends.inductor.compile import open_inductor
from opt_trt.backends.inductor.isa import Isa, target_isa
from opt_trt.backends.inductor.layout import engine_tensors, packed_tensors
from opt_trt.backends.inductor.plan import (
    Progress,
    print_plan,
    profile_table,
    resolve_limits,
    rounding_line,
    tactic_table,
)
from opt_trt.backends.inductor.profile import profile_engine
from opt_trt.backends.inductor.programs import package, submit_decoder, submit_embedding
from opt_trt.cache import cache_dir
from opt_trt.checkpoint import Checkpoint
from opt_trt.checkpoint.fingerprint import fingerprint
from opt_trt.checkpoint.writer import write_rank
from opt_trt.config.build import BuildConfig
from opt_trt.config.flags import TALKATIVE
from opt_trt.config.model import ModelConfig
from opt_trt.plugins.native import NativeLibrary, compile_library, find_compiler
from opt_trt.plugins.ops import Plan
from opt_trt.plugins.rounding import product_errors
from opt_trt.plugins.tactic import winners
from opt_trt.plugins.timing import TimingCache
from opt_trt.plugins.tune import Policy, TunedProblem, tune
from opt_trt.workers import for_each


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> None:
    """Write `config.json`, and the compiled programs and weights of every rank, into the empty directory `out`.

    Programs are compiled once: all ranks of a stage share them, and all stages share `layer`.
    """
    limits = resolve_limits(checkpoint.config, config)
    isa = target_isa(config.target_isa)
    model = limits.model
    if config.dry_run:
        print_plan(checkpoint, config, limits, isa)
        return
    find_compiler()
    ranks = [Checkpoint(checkpoint.directory, rank) for rank in range(model.mapping.world_size)]
    with (
        Progress(("plugin library", "tactics", "programs", "weights")) as progress,
        ThreadPoolExecutor(1) as pool,
        open_inductor(isa, cache_dir()) as compilers,
    ):
        compiling = pool.submit(compile_library, isa.march, cache_dir() / "plugins")  # g++ is a process of its own
        programs = submit_embedding(ranks[0], compiling, compilers)
        library = compiling.result()
        progress.done()
        with compilers.turns.quiet():
            plan, table = _choose_tactics(model, config, library, isa)
        progress.done()
        programs |= submit_decoder(ranks, (plan, library), compilers, limits)
        package({name: compiled.result() for name, compiled in programs.items()}, model.mapping, out)
        progress.done()
        engine = EngineConfig(
            pretrained_config=model,
            build_config=limits.build_config,
            backend="inductor",
            device=_device(isa, plan),
            plugin_library=library.path.name,
            tactics=winners(plan.choices()),
            checkpoint=fingerprint(checkpoint.directory),
        )
        _write_weights(ranks, plan, engine, config.workers, out)
        progress.done()
    shutil.copyfile(library.path, out / library.path.name)
    (out / CONFIG).write_text(json.dumps(engine.to_dict(), indent=2) + "\n")
    if config.log_level in TALKATIVE:
        print(tactic_table(table, config.profiling_verbosity), end="")
        if config.context_int8:
            print(rounding_line(product_errors(plan, library.operators())))
        if config.profiling_verbosity == "detailed":
            print(_profile(out, model.mapping.world_size), end="")


def _profile(engine_dir: Path, ranks: int) -> str:
    """Where a step spends its time; a build is one process, so of several ranks there is a line that says why not."""
    if ranks == 1:
        return profile_table(profile_engine(engine_dir), measure_ceilings())
    return (
        f"no profile of a step: it takes {ranks} ranks at once, the build is one process; to see one, convert the "
        "model with --tp_size 1 --pp_size 1 and build that\n"
    )


def _device(isa: Isa, plan: Plan) -> dict[str, str]:
    """What a machine must have to run the engine, and for what it was compiled."""
    chosen = {tactic for choice in plan.gemm.values() for tactic in choice.tactics}
    flags = isa.needs | {tactic.needs for tactic in chosen if tactic.needs}
    return {
        "type": "cpu", "isa": isa.name, "march": isa.march, "flags": " ".join(sorted(flags)),
        "torch": torch.__version__,
    }  # fmt: skip


def _choose_tactics(
    model: ModelConfig, config: BuildConfig, library: NativeLibrary, isa: Isa
) -> tuple[Plan, list[TunedProblem]]:
    policy = Policy(
        gemm=config.gemm_plugin != "disable",
        attention=config.gpt_attention_plugin != "disable",
        context_fmha=config.context_fmha != "disable",
        deterministic=config.deterministic,
        max_num_tokens=config.max_num_tokens,
        opt_num_tokens=config.opt_num_tokens,
        tokens_per_block=config.tokens_per_block,
        extras=isa.extras,
        lm_head_precision=config.lm_head_precision,
        context_int8=config.context_int8,
    )
    device = f"{library.namespace} {isa.name} threads={torch.get_num_threads()}"
    own = cache_dir() / "timing.cache"
    cache = TimingCache.load(device, Path(config.input_timing_cache) if config.input_timing_cache else own)
    plan, table = tune(model, library.operators(), policy, cache)
    cache.save(Path(config.output_timing_cache))
    if config.input_timing_cache is None:
        cache.save(own)
    return plan, table


def _write_weights(ranks: Sequence[Checkpoint], plan: Plan, engine: EngineConfig, workers: int, out: Path) -> None:
    """The weights of all ranks, `workers` of them at a time; each holds one tensor in memory."""

    def write(rank: int) -> None:
        source, path = ranks[rank], out / WEIGHTS.format(rank=rank)
        tensors = packed_tensors(source, plan)
        write_rank(path, engine_tensors(source, plan), tensors, rank_metadata(engine, rank))

    for_each(iter(range(len(ranks))), write, workers)
