"""The part of a build that is a CPU's: the plugin library, tactics among its kernels, three programs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from opt_trt.backends.inductor.compilation import for_cpu
from opt_trt.backends.inductor.compile import cached_program
from opt_trt.backends.inductor.isa import MULTIPLIES_BF16, Isa
from opt_trt.backends.inductor.layout import engine_tensors
from opt_trt.backends.inductor.made import Made
from opt_trt.backends.inductor.plan import Progress, Resolved
from opt_trt.cache import cache_dir
from opt_trt.checkpoint import Checkpoint
from opt_trt.config.build import BuildConfig
from opt_trt.config.model import ModelConfig
from opt_trt.graph.decoder import head_weight_names, layer_weight_names
from opt_trt.graph.embedding import EMBEDDING_WEIGHTS, communicates
from opt_trt.graph.programs import GraphShapes, embedding_program, head_program, layer_program
from opt_trt.ops import ReferenceOps
from opt_trt.plugins.collectives import CollectiveOps
from opt_trt.plugins.gemm import PAIRS
from opt_trt.plugins.native import NativeLibrary, compile_library
from opt_trt.plugins.ops import Plan, PluginOps
from opt_trt.plugins.timing import TimingCache
from opt_trt.plugins.tune import Policy, TunedProblem, tune


@dataclass(frozen=True)
class CpuMaker:
    """`Maker` for an instruction set."""

    isa: Isa
    stages: tuple[str, ...] = ("plugin library", "tactics", "programs")
    keeps_weights: str = "memory-mapped"

    def describe(self) -> str:
        """See `Described.describe`."""
        return f"cpu, {self.isa.name} (-march={self.isa.march})"

    def to_compile(self) -> str:
        """See `Described.to_compile`."""
        return "plugin library (gemm, attention, collectives); programs embedding, layer, head"

    def make(self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: Resolved, progress: Progress) -> Made:
        """See `Maker.make`."""
        with ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(compile_library, self.isa.march, cache_dir() / "plugins")  # a process of its own
            programs = _compile_embedding(ranks[0], compiling, self.isa)
            library = compiling.result()
        progress.done()
        plan, table = _choose_tactics(limits.model, config, library, self.isa)
        progress.done()
        programs |= _compile_decoder(ranks, (plan, library), self.isa, limits)
        return Made(plan, table, programs, _device(self.isa, plan), library.path)


def _device(isa: Isa, plan: Plan) -> dict[str, str]:
    chosen = {tactic for choice in plan.gemm.values() for tactic in choice.tactics}
    flags = isa.needs | ({MULTIPLIES_BF16} if chosen & set(PAIRS) else set())
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
        multiplies_bf16=MULTIPLIES_BF16 in isa.extras,
        lm_head_precision=config.lm_head_precision,
    )
    device = f"{library.namespace} {isa.name} threads={torch.get_num_threads()}"
    own = cache_dir() / "timing.cache"
    cache = TimingCache.load(device, Path(config.input_timing_cache) if config.input_timing_cache else own)
    plan, table = tune(model, library.operators(), policy, cache)
    for path in (own, Path(config.output_timing_cache)):
        cache.save(path)
    return plan, table


def _compile_embedding(first: Checkpoint, compiling: Future[NativeLibrary], isa: Isa) -> dict[str, list[str]]:
    """The files of the one program that no tactic goes into; of sharded tables it calls the plugin library."""
    config = first.config
    tables = {name: (spec.shape, spec.dtype) for name, spec in first.spec.items() if name in EMBEDDING_WEIGHTS}
    ops, extra = ReferenceOps(), ""
    if communicates(config):
        library = compiling.result()
        ops, extra = CollectiveOps(library.operators(), config.mapping.tp_size), library.namespace
    spec = embedding_program(config, ops, GraphShapes(1, tables), EMBEDDING_WEIGHTS)
    return {spec.name: cached_program(spec, for_cpu(isa), extra, cache_dir())}


def _compile_decoder(
    ranks: Sequence[Checkpoint], chosen: tuple[Plan, NativeLibrary], isa: Isa, limits: Resolved
) -> dict[str, list[str]]:
    """The files of `layer` and `head`, by name."""
    plan, library = chosen
    ops = PluginOps(library.operators(), plan, limits.model.mapping.tp_size)
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
    choices, compilation = plan.choices(), for_cpu(isa, library.direct_calls())
    return {
        spec.name: cached_program(
            spec, compilation, (library.namespace, [choices[site] for site in sites]), cache_dir()
        )
        for spec, sites in specs
    }
