"""The error that `--context_int8` adds to products, which is shown when an engine is built."""

from __future__ import annotations

import functools

import torch

from opt_trt.plugins.cpu.operators import Operators
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.cpu_trials import gemm_run, random_call, random_linears

TOKENS = 16


def product_errors(plan: TacticPlan, operators: Operators) -> dict[str, float]:
    """Return the relative error of a product of normal random numbers, for each site that rounds activations to int8.

    It is the root mean square of the error, divided by that of the result.
    """
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
