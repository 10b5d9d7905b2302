"""Compile for a CPU: the plugin library, tactics among its kernels, and three programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from opt_trt.backends.inductor.builder.limits import ResolvedLimits
from opt_trt.backends.inductor.builder.packaging import submit_decoder, submit_embedding
from opt_trt.backends.inductor.builder.tables import rounding_line
from opt_trt.backends.inductor.builder.target import Compiled, timings
from opt_trt.backends.inductor.compiler.compile import open_inductor
from opt_trt.backends.inductor.compiler.targets import for_cpu
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.host.cache import cache_dir
from opt_trt.host.progress import Progress
from opt_trt.model.config import ModelConfig
from opt_trt.plugins.cpu.isa import Isa
from opt_trt.plugins.native.library import NativeLibrary, compile_library
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.cpu import num_problems, tune
from opt_trt.plugins.tune.noise import BusyMachine, computing_us
from opt_trt.plugins.tune.policy import Policy
from opt_trt.plugins.tune.rounding import product_errors


@dataclass(frozen=True)
class CpuTarget:
    """`Target` of an instruction set."""

    isa: Isa
    stages: tuple[str, ...] = ("plugin library", "tactics", "programs")
    keeps_weights: str = "memory-mapped"

    def describe(self) -> str:
        """See `TargetDescription.describe`."""
        return f"cpu, {self.isa.name} (-march={self.isa.march})"

    def to_compile(self) -> str:
        """See `TargetDescription.to_compile`."""
        return "plugin library (gemm, attention, layer norm, collectives); programs embedding, layer, head"

    def compile(
        self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: ResolvedLimits, progress: Progress
    ) -> Compiled:
        """See `Target.compile`."""
        with ThreadPoolExecutor(1) as pool, open_inductor(for_cpu(self.isa), cache_dir()) as compilers:
            compiling = pool.submit(compile_library, self.isa.march, cache_dir() / "plugins")  # in its own process
            programs = submit_embedding(ranks[0], compiling, compilers)
            library = compiling.result()
            progress.done()
            progress.count(num_problems(limits.model))
            with compilers.turns.quiet():
                plan, tuned = choose_tactics(limits.model, config, library, self.isa, progress.part_done)
            progress.done()
            programs |= submit_decoder(ranks, (plan, library), compilers, limits)
            files = {name: compiled.result() for name, compiled in programs.items()}
        notes = (rounding_line(product_errors(plan, library.operators())),) if config.context_int8 else ()
        return Compiled(plan, tuned, files, device_of(self.isa, plan), library.path, notes)


def device_of(isa: Isa, plan: TacticPlan) -> dict[str, str]:
    """Describe the machine that an engine runs on, with every processor flag that its instructions may need."""
    chosen = {tactic for choice in plan.choices().values() for tactic in choice.tactics}
    flags = isa.needs | {tactic.needs for tactic in chosen if tactic.needs}
    return {
        "type": "cpu", "isa": isa.name, "march": isa.march, "flags": " ".join(sorted(flags)),
        "torch": torch.__version__, "threads": str(torch.get_num_threads()),
    }  # fmt: skip


def choose_tactics(
    model: ModelConfig,
    config: BuildConfig,
    library: NativeLibrary,
    isa: Isa,
    measured: Callable[[], None] = lambda: None,
) -> tuple[TacticPlan, list[TunedProblem]]:
    """Time the tactics that the flags admit; return the winners, and the table of how they were found.

    `measured` is called after each problem.
    """
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
    operators = library.operators()
    busy = BusyMachine(lambda: operators.resting_threads() > 0, computing_us)
    with timings(config, device, busy=busy) as cache:
        cache.measured = measured
        return tune(model, operators, policy, cache)
