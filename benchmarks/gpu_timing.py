"""Times on a GPU, from replayed graphs: launches cost nothing, and every run meets data the cache does not hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from opt_trt.plugins.cuda.graphs import capture, event_us

REPEATS = 20


def elapsed_us(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of `run` on the GPU."""
    return statistics.median(event_us(run) for _ in range(repeats))


def replayed_us(runs: Sequence[Callable[[], object]]) -> float:
    """Median time of one of `runs`, which follow each other in a graph; together they should exceed the cache."""
    return elapsed_us(capture(lambda: [run() for run in runs]).replay) / len(runs)


def read_bytes_per_us(gib: int = 4) -> float:
    """The rate at which a plain reduction reads memory."""
    numbers = torch.randn(gib * 2**28, device="cuda")
    return numbers.nbytes / elapsed_us(numbers.sum)


def product_flop_per_us(dtype: torch.dtype, size: int = 8192) -> float:
    """The rate of the library's product of two large random matrices."""
    a, b = torch.randn(2, size, size, device="cuda").to(dtype)
    return 2 * size**3 / elapsed_us(lambda: a @ b)
