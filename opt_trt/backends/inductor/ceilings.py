"""What the machine could do at best, measured in this process: what a profile is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

READ_ELEMENTS = 2**26  # 256 MiB of fp32: several times any cache
PRODUCT = 1024
ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """Rates of all threads."""

    read_gb_s: float  # reading memory in order
    gemm_gflop_s: float  # the library's fp32 product of large matrices


def measure_ceilings() -> Ceilings:
    """Measure both, in less than a second on two cores."""
    data, matrix = torch.ones(READ_ELEMENTS), torch.ones(PRODUCT, PRODUCT)
    return Ceilings(data.nbytes / _least_ns(data.sum), 2 * PRODUCT**3 / _least_ns(lambda: matrix @ matrix))


def _least_ns(run: Callable[[], object]) -> int:
    run()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - started)
    return min(times)
