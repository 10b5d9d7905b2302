"""Check every tactic of a GPU against the reference on a decoder's real problems, time it, and choose the winners.

All of them read weights in one layout, so unlike a CPU's every bucket has the fastest of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.attention.problem import AttentionProblem
from opt_trt.plugins.cuda.buckets import Bound, bounds_for
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import STORED, GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice, Tactic, Timing, choose
from opt_trt.plugins.tune.common import (
    ATTENTION_KV_LEN,
    LAST_BUCKET_TOKENS,
    TunedProblem,
    gemm_problems,
    table_lines,
    timings_of,
)
from opt_trt.plugins.tune.cuda_trials import (
    attention_call,
    attention_reference,
    gemm_call,
    gemm_reference,
    gemm_run,
    gemm_weights,
)
from opt_trt.plugins.tune.timing import TimingCache

LAST_BUCKET_SEQUENCES = 128
COLD_BYTES, MOST_COPIES = 2**28, 64  # weights a product is timed on: more than caches hold, as they are in an engine
# A prompt is attended to by two kernels, of which the engine takes one when it runs.
CONTEXT = {"context": attention.FLASH, "context, fp16": attention.HALF_FLASH}
OTHER_KERNEL = "the other of two kernels: run.py --enable_context_fmha_fp32_acc takes flash"


@dataclass(frozen=True)
class CudaPolicy:
    """What the builder's flags say of problems and tactics."""

    gemm: bool
    max_sequences: int  # the most a step has of them, and so on
    max_num_tokens: int
    max_logits: int
    tokens_per_block: int
    lm_head_precision: str | None = None


@dataclass(frozen=True)
class TuningBench:
    """Where tactics are tried: on a GPU, or in triton's interpreter, which takes tensors of a CPU."""

    cache: TimingCache
    device: str = "cuda"
    cold_bytes: int = COLD_BYTES


def tune(config: ModelConfig, policy: CudaPolicy, bench: TuningBench) -> tuple[TacticPlan, list[TunedProblem]]:
    """The plan for a decoder, and the table of how it came about.

    Choices are by bucket: of `bounds_for` the largest step; attention's those of generation, then CONTEXT's.
    """
    problems = {
        site: replace(problem, device="cuda")
        for site, problem in gemm_problems(config, policy.lm_head_precision).items()
    }
    choices: dict[str, Choice] = {}
    table: list[TunedProblem] = []
    for site, problem in problems.items():
        bounds = bounds_for(policy.max_logits if site == "head" else policy.max_num_tokens)
        choices[site], lines = _tune_gemm(problem, bounds, policy, bench)
        table += lines
    attention_choice, lines = _tune_attention(config, policy, bench)
    return TacticPlan(problems, choices, attention_choice), table + lines


def _tune_gemm(
    problem: GemmProblem, bounds: Sequence[Bound], policy: CudaPolicy, bench: TuningBench
) -> tuple[Choice, list[TunedProblem]]:
    copies = _copies(problem, bench)
    # Not made where every time is known.
    weights = functools.cache(functools.partial(gemm_weights, problem, copies, bench.device))
    rows, most = [], policy.max_num_tokens
    for bound in bounds:
        tokens = min(LAST_BUCKET_TOKENS, most) if bound is None else bound
        call = gemm_call(problem, tokens, bench.device)
        reasons = {tactic: _gemm_reason(tactic, problem, bound, policy) for tactic in gemm.TACTICS}
        runs = {t: gemm_run(problem, call, weights, t, bound) for t in gemm.TACTICS if reasons[t] is None}
        reference = functools.partial(gemm_reference, problem, call)
        row = timings_of(f"{problem.key()} tokens={tokens}", reference, runs, reasons, bench.cache)
        rows.append([_each(timing, copies) for timing in row])
    choice = choose(rows, [1.0] * len(rows))
    return choice, table_lines((problem.site, problem.weight_type), _names(bounds), rows, choice)


def _gemm_reason(tactic: Tactic, problem: GemmProblem, bound: Bound, policy: CudaPolicy) -> str | None:
    if not policy.gemm and tactic != gemm.CUBLAS:
        return "--gemm_plugin disable"
    return gemm.refusal(tactic, problem, bound)


def _tune_attention(config: ModelConfig, policy: CudaPolicy, bench: TuningBench) -> tuple[Choice, list[TunedProblem]]:
    kv_len = min(ATTENTION_KV_LEN, config.max_position_embeddings)
    generating = bounds_for(policy.max_sequences)
    alike = (config.local_heads, config.head_size, getattr(torch, config.dtype), policy.tokens_per_block)
    rows = []
    for bound in generating:
        problem = AttentionProblem("generation", *alike, 1, kv_len, "cuda")
        sequences = min(LAST_BUCKET_SEQUENCES, policy.max_sequences) if bound is None else bound
        reasons = {tactic: attention.refusal(tactic, problem) for tactic in attention.TACTICS}
        reasons[attention.HALF_FLASH] = reasons[attention.HALF_FLASH] or "sums in fp16"
        rows.append(_time_attention(problem, sequences, reasons, bench))
    names = list(_names(generating))
    for name, only in CONTEXT.items():
        problem = AttentionProblem("context", *alike, min(kv_len, policy.max_num_tokens), kv_len, "cuda")
        reasons = {t: attention.refusal(t, problem) or OTHER_KERNEL * (t != only) or None for t in attention.TACTICS}
        if reasons[only] is None:
            rows.append(_time_attention(problem, 1, reasons, bench))
            names.append(name)
    choice = choose(rows, [1.0] * len(rows))
    return choice, table_lines(("attention", config.dtype), names, rows, choice)


def _time_attention(
    problem: AttentionProblem, sequences: int, reasons: Mapping[Tactic, str | None], bench: TuningBench
) -> list[Timing]:
    call = functools.cache(functools.partial(attention_call, problem, sequences, bench.device))

    def run(tactic: Tactic) -> torch.Tensor:
        return attention.run_attention(tactic, *call())

    runs = {tactic: functools.partial(run, tactic) for tactic, reason in reasons.items() if reason is None}

    def reference() -> torch.Tensor:
        return attention_reference(call())

    return timings_of(f"{problem.key()} sequences={sequences}", reference, runs, reasons, bench.cache)


def _copies(problem: GemmProblem, bench: TuningBench) -> int:
    n, stored = padded.packed_shape(problem)
    nbytes = n * stored * STORED[problem.weight_type].itemsize
    return max(1, min(MOST_COPIES, -(-bench.cold_bytes // nbytes)))


def _each(timing: Timing, copies: int) -> Timing:
    """The time of one product of several."""
    return timing if timing.elapsed_us is None else replace(timing, elapsed_us=timing.elapsed_us / copies)


def _names(bounds: Sequence[Bound]) -> list[str]:
    """The table's words: up to so many tokens, or more."""
    return [f"-{bound}" if bound else f"{bounds[-2]}+" for bound in bounds]
