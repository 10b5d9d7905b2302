"""Recognize times that other programs have spoilt, and measure in a way that they spoil less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

MOST_SPREAD = 1.5  # of repeats: the median of the fastest candidate's times over its least
MOST_FALL = 0.7  # more tokens may take this share of the time of fewer: kernels differ, and so do caches
Result = TypeVar("Result")


class Clock(Protocol):
    """A way to measure the time of a call."""

    def __call__(self, run: Callable[[], Result]) -> tuple[float, Result]:
        """Run a candidate; return the time it takes in µs, and its result."""
        ...


@dataclass(frozen=True)
class BusyMachine:
    """How to tell that other programs take the cores, and the clock to measure with then."""

    is_busy: Callable[[], bool]
    clock: Clock


def computing_us(run: Callable[[], Result]) -> tuple[float, Result]:
    """Measure how long this thread computes, without the time that it waits for a core, and alone: a `Clock`.

    Its times are longer than those of several threads, but order tactics nearly alike.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.thread_time_ns()
        result = run()
        return (time.thread_time_ns() - started) / 1e3, result
    finally:
        torch.set_num_threads(threads)


def is_steady(samples: Mapping[str, Sequence[float]]) -> bool:
    """Return whether repeats of the fastest candidate took about as long as each other."""
    fastest = sorted(min(samples.values(), key=min))
    return fastest[len(fastest) // 2] <= MOST_SPREAD * fastest[0]


def falls(times_us: Sequence[float]) -> bool:
    """Return whether more tokens seem to take much less time than fewer, given times by rising number of tokens."""
    return any(later < MOST_FALL * earlier for i, earlier in enumerate(times_us) for later in times_us[i + 1 :])
