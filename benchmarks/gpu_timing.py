"""Times of replayed graphs on a GPU: launches cost nothing, and runs can use data that is not in the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from opt_trt.plugins.cuda.graphs import capture, event_us

REPEATS = 20


def elapsed_us(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of `run` on the GPU."""
    return statistics.median(event_us(run) for _ in range(repeats))


def replayed_us(runs: Sequence[Callable[[], object]]) -> float:
    """Return the mean time of `runs` in one graph; the data of all runs together should be larger than the cache."""
    return elapsed_us(capture(lambda: [run() for run in runs]).replay) / len(runs)


def read_bytes_per_us(gib: int = 4) -> float:
    """Return the rate at which a plain reduction reads memory."""
    numbers = torch.randn(gib * 2**28, device="cuda")
    return numbers.nbytes / elapsed_us(numbers.sum)


def product_flop_per_us(dtype: torch.dtype, size: int = 8192) -> float:
    """Return the rate at which the library multiplies two large random matrices."""
    a, b = torch.randn(2, size, size, device="cuda").to(dtype)
    return 2 * size**3 / elapsed_us(lambda: a @ b)
