"""Check every tactic of a GPU against the reference on a decoder's real problems, time it, and choose the winners.

All tactics read weights in one layout, so unlike a CPU's, every bucket takes its own fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.plugins.attention import cuda as attention
from opt_trt.plugins.attention.problem import CONTEXT, GENERATION, AttentionProblem
from opt_trt.plugins.cuda.buckets import Bound, bounds_for
from opt_trt.plugins.gemm import cuda as gemm
from opt_trt.plugins.gemm import cuda_layout as padded
from opt_trt.plugins.gemm.problem import STORED, GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import Choice, Tactic, Timing, choose
from opt_trt.plugins.tune import common
from opt_trt.plugins.tune import cuda_trials as trials
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.timing import TimingCache

LAST_BUCKET_SEQUENCES = 128  # the step that stands for all of the bucket without an upper bound
COLD_BYTES = 2**28  # weights that a product is timed on: more than caches hold, as in an engine
MOST_COPIES = 64
# Two kernels attend to prompts. The engine holds programs of both and takes one when it runs.
CONTEXT_KERNELS = {"context": attention.FLASH, "context, fp16": attention.HALF_FLASH}
OTHER_KERNEL = "the other of two kernels: run.py --enable_context_fmha_fp32_acc takes flash"


@dataclass(frozen=True)
class CudaPolicy:
    """The builder's flags and limits, as far as tactics depend on them."""

    gemm: bool
    max_sequences: int  # most sequences of a step
    max_num_tokens: int
    max_logits: int
    tokens_per_block: int
    lm_head_precision: str | None = None


@dataclass(frozen=True)
class TuningBench:
    """The place where tactics are tried: a GPU, or triton's interpreter, which takes tensors of a CPU."""

    cache: TimingCache
    device: str = "cuda"
    cold_bytes: int = COLD_BYTES


def tune(config: ModelConfig, policy: CudaPolicy, bench: TuningBench) -> tuple[TacticPlan, list[TunedProblem]]:
    """Return the plan for a decoder, and the table of times it was chosen from.

    A choice has a tactic for each bucket of `bounds_for` the largest step. Attention's choice has those of generation,
    then one for each of CONTEXT_KERNELS.
    """
    problems = common.gemm_problems(config, policy.lm_head_precision, "cuda")
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
    # Called by the first run, so not if every time is cached.
    weights = functools.cache(functools.partial(trials.gemm_weights, problem, copies, bench.device))
    rows: list[list[Timing]] = []
    for bound in bounds:
        tokens = min(common.LAST_BUCKET_TOKENS, policy.max_num_tokens) if bound is None else bound
        call = trials.gemm_call(problem, tokens, bench.device)
        run_of = functools.partial(trials.gemm_run, problem, call, weights, bound)
        reference = functools.partial(trials.gemm_reference, problem, call)
        reasons = {tactic: _gemm_reason(tactic, problem, bound, policy) for tactic in gemm.TACTICS}
        row = common.timings_of(f"{problem.key()} tokens={tokens}", reference, run_of, reasons, bench.cache)
        rows.append([timing.times(1 / copies) for timing in row])
    choice = choose(rows, [1.0] * len(rows))
    return choice, common.table_lines((problem.site, problem.weight_type), _bucket_names(bounds), rows, choice)


def _gemm_reason(tactic: Tactic, problem: GemmProblem, bound: Bound, policy: CudaPolicy) -> str | None:
    if not policy.gemm and tactic != gemm.CUBLAS:
        return "--gemm_plugin disable"
    return gemm.refusal(tactic, problem, bound)


def _tune_attention(config: ModelConfig, policy: CudaPolicy, bench: TuningBench) -> tuple[Choice, list[TunedProblem]]:
    problem_of = functools.partial(
        common.attention_problem,
        config,
        tokens_per_block=policy.tokens_per_block,
        max_num_tokens=policy.max_num_tokens,
        device="cuda",
    )
    bounds = bounds_for(policy.max_sequences)
    rows, names = [], _bucket_names(bounds)
    for bound in bounds:
        sequences = min(LAST_BUCKET_SEQUENCES, policy.max_sequences) if bound is None else bound
        rows.append(_time_generation(problem_of(GENERATION), sequences, bench))
    for name, kernel in CONTEXT_KERNELS.items():
        problem = problem_of(CONTEXT)
        if attention.refusal(kernel, problem) is None:
            rows.append(_time_context(problem, kernel, bench))
            names.append(name)
    choice = choose(rows, [1.0] * len(rows))
    return choice, common.table_lines(("attention", config.dtype), names, rows, choice)


def _time_generation(problem: AttentionProblem, sequences: int, bench: TuningBench) -> list[Timing]:
    reasons = {tactic: attention.refusal(tactic, problem) for tactic in attention.TACTICS}
    reasons[attention.HALF_FLASH] = reasons[attention.HALF_FLASH] or "sums in fp16"
    return _time_attention(problem, sequences, reasons, bench)


def _time_context(problem: AttentionProblem, kernel: Tactic, bench: TuningBench) -> list[Timing]:
    reasons = {tactic: attention.refusal(tactic, problem) for tactic in attention.TACTICS}
    reasons = {t: reason or (None if t == kernel else OTHER_KERNEL) for t, reason in reasons.items()}
    return _time_attention(problem, 1, reasons, bench)


def _time_attention(
    problem: AttentionProblem, sequences: int, reasons: Mapping[Tactic, str | None], bench: TuningBench
) -> list[Timing]:
    call = functools.cache(functools.partial(trials.attention_call, problem, sequences, bench.device))

    def run_of(tactic: Tactic) -> trials.Run:
        return lambda: attention.run_attention(tactic, *call())

    def reference() -> torch.Tensor:
        return trials.attention_reference(call())

    return common.timings_of(f"{problem.key()} sequences={sequences}", reference, run_of, reasons, bench.cache)


def _copies(problem: GemmProblem, bench: TuningBench) -> int:
    n, stored = padded.packed_shape(problem)
    nbytes = n * stored * STORED[problem.weight_type].itemsize
    return max(1, min(MOST_COPIES, -(-bench.cold_bytes // nbytes)))


def _bucket_names(bounds: Sequence[Bound]) -> list[str]:
    """Return the buckets as the table shows them: `-64` for up to 64 tokens, `64+` for more."""
    return [f"-{bound}" if bound else f"{bounds[-2]}+" for bound in bounds]
