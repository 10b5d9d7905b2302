"""Check every tactic of a CPU against the reference on a decoder's real problems, time it, and choose the winners.

Tactics read weights in several layouts, and a problem's buckets share one layout.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import PHASES
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import BUCKETS, Choice, Timing, bucket_weights, choose
from opt_trt.plugins.tune import common
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.cpu_trials import attention_run, gemm_run, random_call, random_linears
from opt_trt.plugins.tune.noise import falls
from opt_trt.plugins.tune.policy import Policy, attention_reasons, gemm_reasons
from opt_trt.plugins.tune.timing import TimingCache

MOST_FLOPS = 2 * 10**9  # in one timing, a hundredth of a second or two: larger products do not change the order
PART_FEATURES = 2**10  # a part of a product has a multiple of so many outputs: whole tiles, and work for all threads


def tune(
    config: ModelConfig, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[TacticPlan, list[TunedProblem]]:
    """Return the plan for a decoder, and the table of times it was chosen from."""
    problems = common.gemm_problems(config, policy.lm_head_precision)
    choices: dict[str, Choice] = {}
    table: list[TunedProblem] = []
    for site, problem in problems.items():
        choices[site], lines = _tune_gemm(problem, operators, policy, cache)
        table += lines
    attention_choice, lines = _tune_attention(config, operators, policy, cache)
    return TacticPlan(problems, choices, attention_choice), table + lines


def num_problems(config: ModelConfig) -> int:
    """Return how many problems `tune` times, if no time is doubted."""
    return len(common.gemm_problems(config)) * (len(BUCKETS) + 1) + len(PHASES)


def _tune_gemm(
    problem: GemmProblem, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    rows = _time_gemm(problem, operators, policy, cache)
    choice = choose(rows, bucket_weights(policy.opt_num_tokens))
    if cache.busy is not None and falls(_chosen_us(rows, choice)):
        rows = _time_gemm(problem, operators, policy, cache, is_doubted=True)
        choice = choose(rows, bucket_weights(policy.opt_num_tokens))
    return choice, common.table_lines((problem.site, problem.weight_type), _bucket_names(), rows, choice)


def _time_gemm(
    problem: GemmProblem, operators: Operators, policy: Policy, cache: TimingCache, is_doubted: bool = False
) -> list[list[Timing]]:
    """Return the times of a product's tactics in each bucket. Times of a part of the outputs stand for those of all."""
    generator = torch.Generator().manual_seed(0)
    weights = functools.lru_cache(1)(random_linears)  # called by the first run, so not if every time is cached
    rows: list[list[Timing]] = []
    for tokens in representatives(2 * problem.n * problem.k, policy.max_num_tokens):
        part = affordable(problem, tokens)
        call, linears = random_call(part, tokens, generator), functools.partial(weights, part)
        run_of = functools.partial(gemm_run, operators, part, call, linears)
        reasons = gemm_reasons(problem, policy, tokens)
        key = f"{part.key()} tokens={tokens}"
        timings = common.timings_of(key, run_of(gemm.LIBRARY), run_of, reasons, cache, is_doubted)
        rows.append([timing.times(problem.n / part.n) for timing in timings])
    return rows


def _chosen_us(rows: Sequence[Sequence[Timing]], choice: Choice) -> list[float]:
    """Return the times of the chosen tactics by bucket."""
    return [
        next(timing.elapsed_us or 0.0 for timing in row if timing.tactic == tactic)
        for row, tactic in zip(rows, choice.tactics, strict=True)
    ]


def _tune_attention(
    config: ModelConfig, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    rows: list[list[Timing]] = []
    for phase in PHASES:
        problem = common.attention_problem(config, phase, policy.tokens_per_block, policy.max_num_tokens)
        run_of = functools.partial(attention_run, operators, problem)
        reasons = attention_reasons(problem, policy)
        rows.append(common.timings_of(problem.key(), run_of(attention.LIBRARY), run_of, reasons, cache))
    choice = choose(rows, [1.0, 1.0])
    return choice, common.table_lines(("attention", config.dtype), PHASES, rows, choice)


def representatives(flops_per_token: int, max_num_tokens: int) -> list[int]:
    """Return the tokens that each bucket is timed at: the most it may have, or fewer if a product would take long."""
    most_affordable = MOST_FLOPS // flops_per_token
    spans = zip((0, *BUCKETS), (*BUCKETS, common.LAST_BUCKET_TOKENS), strict=True)
    return [min(max(below + 1, min(most, most_affordable)), max_num_tokens) for below, most in spans]


def affordable(problem: GemmProblem, tokens: int) -> GemmProblem:
    """Return the product, with only some of its outputs if all would take long at this number of tokens."""
    most = MOST_FLOPS // (2 * problem.k * tokens)
    if problem.n <= max(most, PART_FEATURES):
        return problem
    return replace(problem, n=max(most // PART_FEATURES, 1) * PART_FEATURES)


def _bucket_names() -> list[str]:
    """Return the buckets as the table shows them: `1`, `2-4` and so on, the last one `257-`."""
    lower = (0, *BUCKETS)
    spans = [f"{a + 1}-{b}" if b > a + 1 else f"{b}" for a, b in zip(lower, BUCKETS, strict=False)]
    return [*spans, f"{BUCKETS[-1] + 1}-"]
