"""The common parts of tuning for a CPU and for a GPU: a decoder's problems, checked times, table lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import COLUMNS, placements
from opt_trt.plugins.attention.problem import GENERATION, AttentionProblem
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import Choice, Tactic, Timing
from opt_trt.plugins.tune.timing import Check, TimingCache
from opt_trt.quant import ALGORITHMS

LAST_BUCKET_TOKENS = 512  # the step that stands for all of the bucket without an upper bound
ATTENTION_KV_LEN = 512  # cached tokens of the sequence that attention is timed on


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


def gemm_problems(
    config: ModelConfig, lm_head_precision: str | None = None, device: str = "cpu"
) -> dict[str, GemmProblem]:
    """Return the matrix products of a rank's decoder by site.

    Row-parallel products add bias and residual after the sum over the ranks, so their problems have neither.
    """
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
        problems[site] = GemmProblem(site, n, k, weight_type, config.dtype, bias and whole, residual and whole, device)
    return problems


def attention_problem(
    config: ModelConfig, phase: str, tokens_per_block: int, max_num_tokens: int, device: str = "cpu"
) -> AttentionProblem:
    """Return the problem that stands for a phase of a rank's attention; its step has at most `max_num_tokens`."""
    kv_len = min(ATTENTION_KV_LEN, config.max_position_embeddings)
    queries = 1 if phase == GENERATION else min(kv_len, max_num_tokens)
    dtype: torch.dtype = getattr(torch, config.dtype)
    return AttentionProblem(
        phase, config.local_heads, config.head_size, dtype, tokens_per_block, queries, kv_len, device
    )


def timings_of(
    problem: str,
    reference: Callable[[], torch.Tensor],
    run_of: Callable[[Tactic], Callable[[], torch.Tensor]],
    reasons: Mapping[Tactic, str | None],
    cache: TimingCache,
    is_doubted: bool = False,
) -> list[Timing]:
    """Return the time of every tactic that no reason keeps out, each checked against the reference when it is timed.

    Times that are doubted are measured again.
    """
    runs = {tactic.name: run_of(tactic) for tactic, reason in reasons.items() if reason is None}
    tolerance = {tactic.name: tactic.tolerance for tactic in reasons}

    def prepare() -> Check[torch.Tensor]:
        expected = reference()

        def check(name: str, result: torch.Tensor) -> None:
            error = float((result - expected).abs().max() / expected.abs().max())
            if not error <= tolerance[name]:
                raise TacticError(f"{name} differs from the reference by {error:.1e} on {problem}")

        return check

    times = cache.measure(problem, runs, prepare, is_doubted)
    return [Timing(tactic, times.get(tactic.name), reason) for tactic, reason in reasons.items()]


def table_lines(
    problem: tuple[str, str], buckets: Sequence[str], rows: Sequence[list[Timing]], choice: Choice
) -> list[TunedProblem]:
    """Return a line for each bucket of a problem, which is a site and the type that it stores."""
    return [
        TunedProblem(*problem, bucket, tuple(row), winner)
        for bucket, row, winner in zip(buckets, rows, choice.tactics, strict=True)
    ]


def chosen_us(tuned: Sequence[TunedProblem]) -> dict[str, list[float]]:
    """Return the times of the winners in µs, by site, in the order of its buckets."""
    times: dict[str, list[float]] = {}
    for line in tuned:
        elapsed = {timing.tactic: timing.elapsed_us or 0.0 for timing in line.timings}
        times.setdefault(line.site, []).append(round(elapsed[line.winner], 1))
    return times
