"""What tuning for a CPU and for a GPU have in common: problems, checked timings, lines of the builder's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import COLUMNS, placements
from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import Choice, Tactic, Timing
from opt_trt.plugins.tune.timing import Check, TimingCache
from opt_trt.quant import ALGORITHMS

LAST_BUCKET_TOKENS = 512


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


def gemm_problems(config: ModelConfig, lm_head_precision: str | None = None) -> dict[str, GemmProblem]:
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
        problems[site] = GemmProblem(site, n, k, weight_type, config.dtype, bias and whole, residual and whole)
    return problems


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


def table_lines(
    problem: tuple[str, str], buckets: Sequence[str], rows: Sequence[list[Timing]], choice: Choice
) -> list[TunedProblem]:
    """A line for each bucket of a problem, which is a site and what it stores."""
    return [
        TunedProblem(*problem, bucket, tuple(row), winner)
        for bucket, row, winner in zip(buckets, rows, choice.tactics, strict=True)
    ]
