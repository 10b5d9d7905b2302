"""The tactics that a build has chosen for every problem of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opt_trt.plugins.gemm.problem import GemmProblem
from opt_trt.plugins.tactic import Choice, Tactic


@dataclass(frozen=True)
class TacticPlan:
    """The winners of every problem of a decoder."""

    problems: Mapping[str, GemmProblem]  # by site
    gemm: Mapping[str, Choice]  # by site
    attention: Choice  # a CPU's: one tactic for generation, one for context; a GPU's: see `tune.cuda.tune`

    def choices(self) -> dict[str, Choice]:
        """Return all winners by site."""
        return {**self.gemm, "attention": self.attention}


@dataclass(frozen=True)
class BucketPlan:
    """The winners for steps of up to `most_tokens` packed tokens; None means any number."""

    most_tokens: int | None
    problems: Mapping[str, GemmProblem]  # by site
    gemm: Mapping[str, Tactic]  # by site
    attention: Tactic
