"""Time whole generations after a warm-up, with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opt_trt.runtime.in_flight import generate
from opt_trt.runtime.request import Request
from opt_trt.runtime.session import Session

WARM_UP_RUNS = 10
TIMED_RUNS = 10


@dataclass(frozen=True)
class GenerationTimes:
    """The seconds of each run over all requests, and the number of new tokens of one run."""

    batch_size: int
    seconds: tuple[float, ...]
    new_tokens: int

    def __str__(self) -> str:
        mean = statistics.mean(self.seconds)
        return (
            f"batch_size: {self.batch_size}, avg latency of {len(self.seconds)} iterations: {mean:.6f} sec "
            f"(min {min(self.seconds):.6f}, max {max(self.seconds):.6f}, std {statistics.pstdev(self.seconds):.6f}), "
            f"{self.new_tokens / mean:.1f} new tokens/s"
        )


def time_generations(
    session: Session, requests: Sequence[Request], clock: Callable[[], float] = time.perf_counter
) -> GenerationTimes:
    """Generate `WARM_UP_RUNS` times, then `TIMED_RUNS` times by the clock (seconds)."""
    for _ in range(WARM_UP_RUNS):
        generate(session, requests)
    seconds = []
    for _ in range(TIMED_RUNS):
        begin = clock()
        results = generate(session, requests)
        seconds.append(clock() - begin)
    return GenerationTimes(len(requests), tuple(seconds), sum(len(result.output_ids) for result in results))
