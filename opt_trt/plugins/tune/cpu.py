"""Check every tactic against the reference on a decoder's real problems, time it, and choose the winners."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.attention.problem import PHASES, AttentionProblem
from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tactic import BUCKETS, Choice, Timing, bucket_weights, choose
from opt_trt.plugins.tune.common import (
    ATTENTION_KV_LEN,
    LAST_BUCKET_TOKENS,
    TunedProblem,
    gemm_problems,
    table_lines,
    timings_of,
)
from opt_trt.plugins.tune.cpu_trials import attention_run, gemm_run, random_call, random_linears
from opt_trt.plugins.tune.policy import Policy, attention_reasons, gemm_reasons
from opt_trt.plugins.tune.timing import TimingCache

MOST_FLOPS = 2 * 10**9  # of one timing: a hundredth of a second or two, beyond which tactics keep their order
PART_FEATURES = 2**10  # a part of a product's outputs has a multiple of so many: whole tiles, and work for all threads


def tune(
    config: ModelConfig, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[TacticPlan, list[TunedProblem]]:
    """The plan for a decoder, and the table of how it came about."""
    problems = gemm_problems(config, policy.lm_head_precision)
    choices: dict[str, Choice] = {}
    table: list[TunedProblem] = []
    for site, problem in problems.items():
        choices[site], lines = _tune_gemm(problem, operators, policy, cache)
        table += lines
    attention_choice, lines = _tune_attention(config, operators, policy, cache)
    return TacticPlan(problems, choices, attention_choice), table + lines


def _tune_gemm(
    problem: GemmProblem, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    generator = torch.Generator().manual_seed(0)
    weights = functools.lru_cache(1)(random_linears)  # not made where every time is known
    rows: list[list[Timing]] = []
    for tokens in representatives(2 * problem.n * problem.k, policy.max_num_tokens):
        part = affordable(problem, tokens)
        call, linears = random_call(part, tokens, generator), functools.partial(weights, part)
        reasons = gemm_reasons(problem, policy, tokens)
        runs = {
            tactic: gemm_run(operators, part, call, linears, tactic)
            for tactic in gemm.TACTICS
            if reasons[tactic] is None
        }
        reference = gemm_run(operators, part, call, linears, gemm.LIBRARY)
        rows.append(timings_of(f"{part.key()} tokens={tokens}", reference, runs, reasons, cache))
    choice = choose(rows, bucket_weights(policy.opt_num_tokens))
    return choice, table_lines((problem.site, problem.weight_type), _bucket_names(), rows, choice)


def _tune_attention(
    config: ModelConfig, operators: Operators, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    kv_len = min(ATTENTION_KV_LEN, config.max_position_embeddings)
    rows = []
    for phase, queries in zip(PHASES, (1, min(kv_len, policy.max_num_tokens)), strict=True):
        problem = AttentionProblem(
            phase, config.local_heads, config.head_size, getattr(torch, config.dtype), policy.tokens_per_block,
            queries, kv_len,
        )  # fmt: skip
        reasons = attention_reasons(problem, policy)
        runs = {t: attention_run(operators, problem, t) for t in attention.TACTICS if reasons[t] is None}
        rows.append(
            timings_of(problem.key(), attention_run(operators, problem, attention.LIBRARY), runs, reasons, cache)
        )
    choice = choose(rows, [1.0, 1.0])
    return choice, table_lines(("attention", config.dtype), PHASES, rows, choice)


def representatives(flops_per_token: int, max_num_tokens: int) -> list[int]:
    """Tokens each bucket is timed at: the most it may have, or fewer where a product would take long."""
    affordable = MOST_FLOPS // flops_per_token
    spans = zip((0, *BUCKETS), (*BUCKETS, LAST_BUCKET_TOKENS), strict=True)
    return [min(max(below + 1, min(most, affordable)), max_num_tokens) for below, most in spans]


def affordable(problem: GemmProblem, tokens: int) -> GemmProblem:
    """The product, or as many of its outputs as do not take long where its bucket has no fewer tokens."""
    most = MOST_FLOPS // (2 * problem.k * tokens)
    if problem.n <= max(most, PART_FEATURES):
        return problem
    return replace(problem, n=max(most // PART_FEATURES, 1) * PART_FEATURES)


def _bucket_names() -> list[str]:
    lower = (0, *BUCKETS)
    spans = [f"{a + 1}-{b}" if b > a + 1 else f"{b}" for a, b in zip(lower, BUCKETS, strict=False)]
    return [*spans, f"{BUCKETS[-1] + 1}-"]
