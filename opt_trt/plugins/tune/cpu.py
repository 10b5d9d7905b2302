"""Check every tactic against the reference on a decoder's real problems, time it, and choose the winners."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import COLUMNS, placements
from opt_trt.plugins.attention import cpu as attention
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.ops.cpu import Plan
from opt_trt.plugins.tactic import BUCKETS, Choice, Tactic, Timing, bucket_weights, choose
from opt_trt.plugins.tune.cpu_trials import attention_run, gemm_run, random_call, random_linears
from opt_trt.plugins.tune.policy import Policy, attention_reasons, gemm_reasons
from opt_trt.plugins.tune.timing import Check, TimingCache
from opt_trt.quant import ALGORITHMS

LAST_BUCKET_TOKENS = 512
MOST_FLOPS = 2 * 10**9  # of one timing: a hundredth of a second or two, beyond which tactics keep their order
PART_FEATURES = 2**10  # a part of a product's outputs has a multiple of so many: whole tiles, and work for all threads
ATTENTION_KV_LEN = 512


@dataclass(frozen=True)
class TunedProblem:
    """One line of the builder's table."""

    site: str
    stored: str  # type of the weights, or of the KV cache
    bucket: str
    timings: tuple[Timing, ...]
    winner: Tactic


class TacticError(Exception):
    """A tactic disagrees with the reference: a bug of ours or of the compiler's, never the user's."""


def gemm_problems(config: ModelConfig, lm_head_precision: str | None = None) -> dict[str, gemm.GemmProblem]:
    """The matrix products of a rank's decoder by site; bias and residual of row-parallel ones come after the sum."""
    layer, tp_size, table = "transformer.layers.0.", config.mapping.tp_size, placements(config)
    linear = config.dtype if config.quant_algo is None else ALGORITHMS[config.quant_algo].name
    rows = (
        ("qkv", f"{layer}attention.qkv.weight", linear, True, False),
        ("dense", f"{layer}attention.dense.weight", linear, True, True),
        ("fc", f"{layer}mlp.fc.weight", linear, True, False),
        ("proj", f"{layer}mlp.proj.weight", linear, True, True),
        ("head", "lm_head.weight", lm_head_precision or config.dtype, False, False),
    )
    problems = {}
    for site, name, weight_type, bias, residual in rows:
        n, k = table[name].local_shape(tp_size)
        whole = tp_size == 1 or table[name].split != COLUMNS
        problems[site] = gemm.GemmProblem(site, n, k, weight_type, config.dtype, bias and whole, residual and whole)
    return problems


def tune(config: ModelConfig, native: Any, policy: Policy, cache: TimingCache) -> tuple[Plan, list[TunedProblem]]:
    """The plan for a decoder, and the table of how it came about."""
    problems = gemm_problems(config, policy.lm_head_precision)
    choices: dict[str, Choice] = {}
    table: list[TunedProblem] = []
    for site, problem in problems.items():
        choices[site], lines = _tune_gemm(problem, native, policy, cache)
        table += lines
    attention_choice, lines = _tune_attention(config, native, policy, cache)
    return Plan(problems, choices, attention_choice), table + lines


def _tune_gemm(
    problem: gemm.GemmProblem, native: Any, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    generator = torch.Generator().manual_seed(0)
    weights = functools.lru_cache(1)(random_linears)  # not made where every time is known
    rows: list[list[Timing]] = []
    for tokens in representatives(2 * problem.n * problem.k, policy.max_num_tokens):
        part = affordable(problem, tokens)
        call, linears = random_call(part, tokens, generator), functools.partial(weights, part)
        reasons = gemm_reasons(problem, policy, tokens)
        runs = {
            tactic: gemm_run(native, part, call, linears, tactic) for tactic in gemm.TACTICS if reasons[tactic] is None
        }
        reference = gemm_run(native, part, call, linears, gemm.LIBRARY)
        rows.append(timings_of(f"{part.key()} tokens={tokens}", reference, runs, reasons, cache))
    choice = choose(rows, bucket_weights(policy.opt_num_tokens))
    return choice, table_lines((problem.site, problem.weight_type), _bucket_names(), rows, choice)


def _tune_attention(
    config: ModelConfig, native: Any, policy: Policy, cache: TimingCache
) -> tuple[Choice, list[TunedProblem]]:
    kv_len = min(ATTENTION_KV_LEN, config.max_position_embeddings)
    rows = []
    for phase, queries in zip(attention.PHASES, (1, min(kv_len, policy.max_num_tokens)), strict=True):
        problem = attention.AttentionProblem(
            phase, config.local_heads, config.head_size, getattr(torch, config.dtype), policy.tokens_per_block,
            queries, kv_len,
        )  # fmt: skip
        reasons = attention_reasons(problem, policy)
        runs = {t: attention_run(native, problem, t) for t in attention.TACTICS if reasons[t] is None}
        rows.append(timings_of(problem.key(), attention_run(native, problem, attention.LIBRARY), runs, reasons, cache))
    choice = choose(rows, [1.0, 1.0])
    return choice, table_lines(("attention", config.dtype), attention.PHASES, rows, choice)


def timings_of(
    problem: str,
    trusted: Callable[[], torch.Tensor],
    runs: Mapping[Tactic, Callable[[], torch.Tensor]],
    reasons: Mapping[Tactic, str | None],
    cache: TimingCache,
) -> list[Timing]:
    """Every tactic's time on one problem, for which its result is checked against the trusted one."""
    tolerance = {tactic.name: tactic.tolerance for tactic in runs}

    def prepare() -> Check[torch.Tensor]:
        reference = trusted()

        def check(name: str, result: torch.Tensor) -> None:
            error = float((result - reference).abs().max() / reference.abs().max())
            if not error <= tolerance[name]:
                raise TacticError(f"{name} differs from the reference by {error:.1e} on {problem}")

        return check

    times = cache.measure(problem, {tactic.name: run for tactic, run in runs.items()}, prepare)
    return [Timing(tactic, times.get(tactic.name), reason) for tactic, reason in reasons.items()]


def representatives(flops_per_token: int, max_num_tokens: int) -> list[int]:
    """Tokens each bucket is timed at: the most it may have, or fewer where a product would take long."""
    affordable = MOST_FLOPS // flops_per_token
    spans = zip((0, *BUCKETS), (*BUCKETS, LAST_BUCKET_TOKENS), strict=True)
    return [min(max(below + 1, min(most, affordable)), max_num_tokens) for below, most in spans]


def affordable(problem: gemm.GemmProblem, tokens: int) -> gemm.GemmProblem:
    """The product, or as many of its outputs as do not take long where its bucket has no fewer tokens."""
    most = MOST_FLOPS // (2 * problem.k * tokens)
    if problem.n <= max(most, PART_FEATURES):
        return problem
    return replace(problem, n=max(most // PART_FEATURES, 1) * PART_FEATURES)


def _bucket_names() -> list[str]:
    lower = (0, *BUCKETS)
    spans = [f"{a + 1}-{b}" if b > a + 1 else f"{b}" for a, b in zip(lower, BUCKETS, strict=False)]
    return [*spans, f"{BUCKETS[-1] + 1}-"]


def table_lines(
    problem: tuple[str, str], buckets: Sequence[str], rows: Sequence[list[Timing]], choice: Choice
) -> list[TunedProblem]:
    """A line for each bucket of a problem, which is a site and what it stores."""
    return [
        TunedProblem(*problem, bucket, tuple(row), winner)
        for bucket, row, winner in zip(buckets, rows, choice.tactics, strict=True)
    ]
