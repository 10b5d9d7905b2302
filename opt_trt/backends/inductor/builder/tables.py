"""What a build will do, and what it did, as a person reads it: limits, memory, tactics."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import torch

from opt_trt.backends.engine import Limits
from opt_trt.backends.inductor.profiler.ceilings import Ceilings
from opt_trt.backends.inductor.profiler.step_profile import StepProfile
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.config.flags import refuse_given
from opt_trt.errors import UserError
from opt_trt.host.progress import Bar
from opt_trt.model.config import ENGINE_ACTIVATION, ModelConfig
from opt_trt.plugins.cpu.isa import INT8_PRODUCTS, target_isa
from opt_trt.plugins.tune.cpu import TunedProblem

MIB = 2**20


@dataclass(frozen=True)
class Resolved:
    """A checkpoint's configuration and the engine's limits after defaults and checks."""

    model: ModelConfig
    build_config: Limits


def resolve_limits(model: ModelConfig, config: BuildConfig) -> Resolved:
    """Fill in what depends on the checkpoint, and refuse what only TensorRT can do."""
    refuse_given(config, config.EMBEDDED)
    if model.hidden_act != ENGINE_ACTIVATION:
        raise UserError(
            f"{config.checkpoint_dir} has hidden_act {model.hidden_act!r}, and the embedded engine computes "
            f"{ENGINE_ACTIVATION} only; build this checkpoint with --backend tensorrt_llm"
        )
    if config.context_int8:
        _check_context_int8(model, config)
    max_seq_len = config.longest_sequence(model.max_position_embeddings)
    limits = Limits(
        max_batch_size=config.max_batch_size,
        max_input_len=min(config.max_input_len, max_seq_len, config.max_num_tokens),
        max_seq_len=max_seq_len,
        max_num_tokens=config.max_num_tokens,
        tokens_per_block=config.tokens_per_block,
        gather_context_logits=config.gather_context_logits or config.gather_all_token_logits,
        gather_generation_logits=config.gather_generation_logits or config.gather_all_token_logits,
        lm_head_precision=config.lm_head_precision,
        context_int8=config.context_int8,
        plugin_config={
            "gemm_plugin": config.gemm_plugin,
            "gpt_attention_plugin": config.gpt_attention_plugin,
            "context_fmha": config.context_fmha != "disable" and config.gpt_attention_plugin != "disable",
            "remove_input_padding": True,
            "paged_kv_cache": True,
        },
    )
    return Resolved(replace(model, logits_dtype=config.logits_dtype or model.logits_dtype), limits)


def _check_context_int8(model: ModelConfig, config: BuildConfig) -> None:
    """`UserError` if no product could round its activations."""
    if INT8_PRODUCTS not in target_isa(config.target_isa).extras:
        raise UserError(
            f"--context_int8 needs a processor with {INT8_PRODUCTS}, and no --target_isa that leaves it out, found "
            f"{f'--target_isa {config.target_isa}' if config.target_isa else 'one without'}; drop --context_int8"
        )
    if model.dtype == "float32" or (model.quant_algo is None and config.lm_head_precision is None):
        found = f"dtype {model.dtype}, weights {model.quant_algo or model.dtype}"
        raise UserError(
            f"--context_int8 needs int8 or int4 weights in a model of float16 or bfloat16, found {found} in "
            f"{config.checkpoint_dir}; convert with --use_weight_only, or drop --context_int8"
        )


class Described(Protocol):
    """The device of a build, in words."""

    @property
    def keeps_weights(self) -> str:
        """How it holds weights while an engine runs."""
        ...

    def describe(self) -> str:
        """The device and what is compiled for it."""
        ...

    def to_compile(self) -> str:
        """What is compiled."""
        ...


def print_plan(checkpoint: Checkpoint, config: BuildConfig, limits: Resolved, device: Described) -> None:
    """What `--dry_run` shows."""
    model, build = limits.model, limits.build_config
    layers = len(model.stage_layers(0))
    token = 2 * model.local_heads * model.head_size * getattr(torch, model.dtype).itemsize * layers
    sequence = token * build.max_seq_len
    rows = (
        ("backend", f"inductor on {device.describe()}"),
        ("model", f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.dtype}"),
        ("head", build.lm_head_precision or model.dtype),
        ("ranks", f"{model.mapping.world_size} (tp_size {model.mapping.tp_size}, pp_size {model.mapping.pp_size})"),
        ("limits", f"{build.max_batch_size} sequences, prompt {build.max_input_len}, total {build.max_seq_len} tokens"),
        ("step", f"at most {build.max_num_tokens} packed tokens"),
        ("weights, rank 0", f"{checkpoint.nbytes / MIB:.1f} MiB, {device.keeps_weights}"),
        ("KV cache, rank 0", f"{sequence / MIB:.1f} MiB a sequence of {build.max_seq_len} tokens"),
        ("to compile", device.to_compile()),
        ("to time", f"gemm_plugin {config.gemm_plugin}, gpt_attention_plugin {config.gpt_attention_plugin}"),
        ("output", f"{config.output_dir} (nothing is written in a dry run)"),
    )
    for name, value in rows:
        print(f"{name:<18}{value}")


def tactic_table(table: Sequence[TunedProblem], verbosity: str) -> str:
    """The winners with their times; `detailed` adds every loser's time or reason, `none` is empty."""
    if verbosity == "none":
        return ""
    detailed = verbosity == "detailed"
    head = f"{'problem':<11}{'stored':<10}{'tokens':<12}{'tactic':<10}{'us':>9}"
    lines = [f"{head}  others" if detailed else head]
    for row in table:
        times = {t.tactic: t for t in row.timings}
        others = ", ".join(
            f"{t.tactic.name} {t.elapsed_us:.0f}" if t.elapsed_us is not None else f"{t.tactic.name}: {t.reason}"
            for t in row.timings
            if t.tactic != row.winner
        )
        elapsed_us = times[row.winner].elapsed_us or 0
        line = f"{row.site:<11}{row.stored:<10}{row.bucket:<12}{row.winner.name:<10}{elapsed_us:>9.1f}"
        lines.append(f"{line}  {others}" if detailed else line)
    return "\n".join(lines) + "\n"


def profile_table(profile: StepProfile, ceilings: Ceilings) -> str:
    """Where a step spends its time, and at what share of what the machine can do."""
    whole = profile.step_ns
    lines = [
        f"a step of one sequence with {profile.context_tokens} tokens: {whole / 1e6:.2f} ms "
        f"(mean of the fastest {profile.steps}), {profile.page_faults:.1f} page faults",
        f"machine: reads {ceilings.read_gb_s:.1f} GB/s, multiplies fp32 at {ceilings.gemm_gflop_s:.0f} GFLOP/s",
        f"{'operation':<18}{'calls':>6}{'us':>9}{'share':>8}{'GB/s':>8}{'of read':>9}{'GFLOP/s':>9}{'of gemm':>9}",
    ]
    for name, ns in (*profile.by_operation.items(), ("outside kernels", profile.outside_ns)):
        line = f"{name:<18}{profile.calls.get(name, ''):>6}{ns / 1e3:>9.1f}{ns / whole:>8.1%}"
        if (work := profile.work.get(name)) is not None and ns:
            read, done = work.nbytes / ns, work.flops / ns
            line += f"{read:>8.1f}{read / ceilings.read_gb_s:>9.1%}{done:>9.1f}{done / ceilings.gemm_gflop_s:>9.1%}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def rounding_line(errors: Mapping[str, float]) -> str:
    """What `--context_int8` did, by product."""
    if not errors:
        return "--context_int8: no product is faster with activations of int8"
    shown = ", ".join(f"{site} {error:.2%}" for site, error in errors.items())
    return (
        f"--context_int8: root mean square error of products of several tokens (activations without outliers): {shown}"
    )


class Progress:
    """A bar over the stages of a build; quiet when stderr is not a terminal."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages

    def __enter__(self) -> Progress:
        self.bar = Bar(total=len(self.stages), file=sys.stderr, disable=None, bar_format="{desc:<16}{bar}| {elapsed}")
        self.bar.set_description_str(self.stages[0])
        return self

    def done(self) -> None:
        """The current stage is done."""
        self.bar.update()
        self.bar.set_description_str(self.stages[min(self.bar.n, len(self.stages) - 1)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
