"""Measure the best rates of the machine, in this process: a profile is compared with them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from opt_trt.host.cache import cache_dir
from opt_trt.plugins.cpu.isa import target_isa
from opt_trt.plugins.native.library import compile_library

READ_BYTES = 2**28  # several times any cache
PRODUCT = 1024
ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """The rates of all threads together."""

    read_gb_s: float  # reading memory, in the number of streams that is fastest
    gemm_gflop_s: float  # torch's fp32 product of large matrices


def measure_ceilings() -> Ceilings:
    """Measure both, in less than a second on two cores."""
    return Ceilings(read_rate(READ_BYTES, ROUNDS), product_rate(PRODUCT, torch.float32, ROUNDS))


def read_rate(nbytes: int, rounds: int, of: Callable[[list[int]], float] = min) -> float:
    """Return the GB/s of reading `nbytes` of memory.

    `of` picks from the times of the rounds: by default the best, as other processes can only slow a round down.
    """
    native = compile_library(target_isa().march, cache_dir() / "plugins").operators()
    return nbytes / of(_ns(functools.partial(native.sum_words, torch.ones(nbytes // 4)), rounds))


def product_rate(size: int, dtype: torch.dtype, rounds: int) -> float:
    """Return the GFLOP/s of torch's product of two square matrices, the best of some rounds."""
    matrix = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / min(_ns(lambda: matrix @ matrix, rounds))


def _ns(run: Callable[[], object], rounds: int) -> list[int]:
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - started)
    return times
