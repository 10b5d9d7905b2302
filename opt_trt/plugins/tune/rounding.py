"""What rounding activations further does to a product: what `--context_int8` costs, shown when an engine is built."""

from __future__ import annotations

import functools

import torch

from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.cpu_trials import gemm_run, random_call, random_linears

TOKENS = 16


def product_errors(plan: TacticPlan, operators: Operators) -> dict[str, float]:
    """Root mean square of the error as a share of the result's, by site that rounds; everything random is normal."""
    errors = {}
    for site, problem in plan.problems.items():
        rounding = [tactic for tactic in plan.gemm[site].tactics if tactic in gemm.FIXED8]
        if rounding:
            call, linears = random_call(problem, TOKENS, torch.Generator().manual_seed(0)), random_linears(problem)
            exact, rounded = (
                gemm_run(operators, problem, call, functools.partial(dict, linears), tactic)()
                for tactic in (gemm.LIBRARY, rounding[0])
            )
            errors[site] = float((rounded - exact).norm() / exact.norm())
    return errors
