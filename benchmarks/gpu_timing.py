"""Times on a GPU, from replayed graphs: launches cost nothing, and every run meets data the cache does not hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

WARM_UP, REPEATS = 3, 20


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of `run`, after the calls that load its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def elapsed_us(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of `run` on the GPU."""
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def replayed_us(runs: Sequence[Callable[[], object]]) -> float:
    """Median time of one of `runs`, which follow each other in a graph; together they should exceed the cache."""
    return elapsed_us(captured(lambda: [run() for run in runs]).replay) / len(runs)


def read_bytes_per_us(gib: int = 4) -> float:
    """The rate at which a plain reduction reads memory."""
    numbers = torch.randn(gib * 2**28, device="cuda")
    return numbers.nbytes / elapsed_us(numbers.sum)


def product_flop_per_us(dtype: torch.dtype, size: int = 8192) -> float:
    """The rate of the library's product of two large random matrices."""
    a, b = torch.randn(2, size, size, device="cuda").to(dtype)
    return 2 * size**3 / elapsed_us(lambda: a @ b)
