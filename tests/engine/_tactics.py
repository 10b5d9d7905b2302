"""Run tactics in tests: on every instruction set that runs here, wherever they are not refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from opt_trt.plugins.cpu.isa import Isa, runnable_isas, target_isa
from opt_trt.plugins.gemm import cpu as gemm
from opt_trt.plugins.gemm.problem import GemmCall, GemmProblem
from opt_trt.plugins.tactic import BUCKETS, Tactic
from tests.engine._libraries import plugin_library

ISAS = (target_isa(), *runnable_isas()[1:])


@functools.cache
def operators(isa: Isa) -> Any:
    """Return the operators of the plugin library for an instruction set."""
    return plugin_library(isa).operators()


def where_supported(
    names: Sequence[str], cases: Iterable[Sequence[Any]], refusal: Callable[..., str | None]
) -> pytest.MarkDecorator:
    """Parametrize by `isa` and `names`, leaving out what `refusal(extras, *case)` gives a reason for."""
    rows = [
        pytest.param(isa, *case, id="-".join(str(getattr(value, "name", value)) for value in (isa, *case)))
        for case in cases
        for isa in ISAS
        if refusal(isa.extras, *case) is None
    ]
    return pytest.mark.parametrize(("isa", *names), rows)


def run_gemm(problem: GemmProblem, call: GemmCall, tactic: Tactic, isa: Isa) -> Any:
    """Multiply by one tactic, however many tokens there are."""
    library = operators(isa)
    return gemm.run_gemm(library, problem, call, gemm.kernel_numbers(library, [tactic] * (len(BUCKETS) + 1)))
