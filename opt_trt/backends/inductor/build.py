"""Build an embedded engine: choose tactics, compile the programs, lay out the weights."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from opt_trt.backends.engine import CONFIG, PROGRAMS, WEIGHTS, EngineConfig
from opt_trt.backends.inductor.compile import cached_program, package_programs
from opt_trt.backends.inductor.isa import Isa, runnable_isas
from opt_trt.backends.inductor.layout import engine_tensors, packed_tensors
from opt_trt.backends.inductor.plan import Progress, Resolved, print_plan, resolve_limits, tactic_table
from opt_trt.cache import cache_dir
from opt_trt.checkpoint import Checkpoint
from opt_trt.checkpoint.writer import write_rank
from opt_trt.config.build import BuildConfig
from opt_trt.config.flags import TALKATIVE
from opt_trt.config.model import ModelConfig
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS
from opt_trt.graph.programs import GraphShapes, embedding_program, head_program, layer_program
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.native import NativeLibrary, compile_library, find_compiler
from opt_trt.plugins.ops import Plan, PluginOps
from opt_trt.plugins.tactic import winners
from opt_trt.plugins.timing import TimingCache
from opt_trt.plugins.tune import Policy, TunedProblem, tune


def build(checkpoint: Checkpoint, config: BuildConfig, out: Path) -> None:
    """Write `config.json`, the compiled programs, the weights and the plugin library into the empty directory `out`."""
    limits = resolve_limits(checkpoint.config, config)
    isa = runnable_isas()[0]
    model = limits.model
    if config.dry_run:
        print_plan(checkpoint, config, limits, isa)
        return
    find_compiler()
    with Progress(("plugin library", "tactics", "programs", "weights")) as progress, ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(compile_library, isa.march, cache_dir() / "plugins")  # g++ is a process of its own
        programs = _compile_embedding(checkpoint, isa)
        library = compiling.result()
        progress.done()
        plan, table = _choose_tactics(model, config, library, isa)
        progress.done()
        programs |= _compile_decoder(checkpoint, (plan, library), isa, limits)
        package_programs(programs, out / PROGRAMS.format(rank=0))
        progress.done()
        write_rank(out / WEIGHTS.format(rank=0), engine_tensors(checkpoint, plan), packed_tensors(checkpoint, plan))
        progress.done()
    shutil.copyfile(library.path, out / library.path.name)
    engine = EngineConfig(
        pretrained_config=model,
        build_config=limits.build_config,
        backend="inductor",
        device={"type": "cpu", "isa": isa.name, "flags": " ".join(isa.used_flags()), "torch": torch.__version__},
        plugin_library=library.path.name,
        tactics=winners(plan.choices()),
    )
    (out / CONFIG).write_text(json.dumps(engine.to_dict(), indent=2) + "\n")
    if config.log_level in TALKATIVE:
        print(tactic_table(table, config.profiling_verbosity), end="")


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
    )
    device = f"{library.namespace} {isa.name} threads={torch.get_num_threads()}"
    own = cache_dir() / "timing.cache"
    cache = TimingCache.load(device, Path(config.input_timing_cache) if config.input_timing_cache else own)
    plan, table = tune(model, library.operators(), policy, cache)
    for path in (own, Path(config.output_timing_cache)):
        cache.save(path)
    return plan, table


def _compile_embedding(checkpoint: Checkpoint, isa: Isa) -> dict[str, list[str]]:
    """The files of the one program that no tactic goes into."""
    tables = {name: (spec.shape, spec.dtype) for name, spec in checkpoint.spec.items() if name in EMBEDDING_WEIGHTS}
    spec = embedding_program(checkpoint.config, ReferenceOps(), GraphShapes(1, tables), EMBEDDING_WEIGHTS)
    return {spec.name: cached_program(spec, isa, "", cache_dir())}


def _compile_decoder(
    checkpoint: Checkpoint, chosen: tuple[Plan, NativeLibrary], isa: Isa, limits: Resolved
) -> dict[str, list[str]]:
    """The files of `layer` and `head`, by name."""
    plan, library = chosen
    ops = PluginOps(library.operators(), plan)
    weights = {name: (t.shape, t.dtype) for name, t in engine_tensors(checkpoint, plan).items()}
    shapes = GraphShapes(limits.build_config.tokens_per_block, weights)
    specs = (
        (
            layer_program(limits.model, ops, shapes, layer_weight_names(limits.model, 0)),
            ("qkv", "attention", "dense", "fc", "proj"),
        ),
        (head_program(limits.model, ops, shapes, head_weight_names(limits.model)), ("head",)),
    )
    choices = plan.choices()
    return {
        spec.name: cached_program(spec, isa, (library.namespace, [choices[site] for site in sites]), cache_dir())
        for spec, sites in specs
    }
