"""The tables that a build prints: limits and memory before it, tactics and a profile after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from opt_trt.backends.inductor.builder.limits import ResolvedLimits
from opt_trt.backends.inductor.builder.target import TargetDescription
from opt_trt.backends.inductor.profiler.ceilings import Ceilings
from opt_trt.backends.inductor.profiler.step_profile import StepProfile
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.host.disk import size_text
from opt_trt.plugins.tune.common import TunedProblem


def print_plan(checkpoint: Checkpoint, config: BuildConfig, limits: ResolvedLimits, target: TargetDescription) -> None:
    """Print what `--dry_run` shows."""
    model, build = limits.model, limits.build_config
    layers = len(model.stage_layers(0))
    token = 2 * model.local_heads * model.head_size * getattr(torch, model.dtype).itemsize * layers
    sequence = token * build.max_seq_len
    rows = (
        ("backend", f"inductor on {target.describe()}"),
        ("model", f"{model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.dtype}"),
        ("head", build.lm_head_precision or model.dtype),
        ("ranks", f"{model.mapping.world_size} (tp_size {model.mapping.tp_size}, pp_size {model.mapping.pp_size})"),
        ("limits", f"{build.max_batch_size} sequences, prompt {build.max_input_len}, total {build.max_seq_len} tokens"),
        ("step", f"at most {build.max_num_tokens} packed tokens"),
        ("weights, rank 0", f"{size_text(checkpoint.nbytes)}, {target.keeps_weights}"),
        ("KV cache, rank 0", f"{size_text(sequence)} a sequence of {build.max_seq_len} tokens"),
        ("to compile", target.to_compile()),
        ("to time", f"gemm_plugin {config.gemm_plugin}, gpt_attention_plugin {config.gpt_attention_plugin}"),
        ("output", f"{config.output_dir} (nothing is written in a dry run)"),
    )
    for name, value in rows:
        print(f"{name:<18}{value}")


def tactic_table(tuned: Sequence[TunedProblem], verbosity: str) -> str:
    """Format the winners with their times.

    Verbosity `detailed` adds every other tactic's time, or why it was not timed; `none` gives an empty text.
    """
    if verbosity == "none":
        return ""
    detailed = verbosity == "detailed"
    head = f"{'problem':<11}{'stored':<10}{'tokens':<12}{'tactic':<10}{'us':>9}"
    lines = [f"{head}  others" if detailed else head]
    for row in tuned:
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
    """Format the time of each operation of a step, beside the share of the machine's best rates that it reaches."""
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
    """Format the error that `--context_int8` adds, by product."""
    if not errors:
        return "--context_int8: no product is faster with activations of int8"
    shown = ", ".join(f"{site} {error:.2%}" for site, error in errors.items())
    return (
        f"--context_int8: root mean square error of products of several tokens (activations without outliers): {shown}"
    )
