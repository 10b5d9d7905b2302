"""Time tactics against each other, and remember the times in a cache file.

A cache is valid for one device and version set, which its keys carry; a hit decides without timing, so two builds with
one cache give one engine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opt_trt.errors import UserError

ROUNDS = 7
BUDGET_S = 0.25


@dataclass
class TimingCache:
    """Times in microseconds by (device, problem, bucket) and tactic."""

    device: str
    times: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def load(cls, device: str, path: Path | None) -> TimingCache:
        """Read a cache file; a missing one is empty, a damaged one is named."""
        if path is None or not path.is_file():
            return cls(device)
        try:
            times = json.loads(path.read_text())
            assert all(isinstance(us, float) for row in times.values() for us in row.values())
        except (ValueError, AttributeError, AssertionError) as error:
            raise UserError(f"{path} is not a timing cache of build.py; delete it, or name another file") from error
        return cls(device, times)

    def save(self, path: Path) -> None:
        """Write the cache beside `path`, then rename it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.times, indent=1, sort_keys=True))
        temporary.replace(path)

    def measure(self, problem: str, candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Times of all candidates, from the cache when it has every one of them."""
        row = self.times.setdefault(f"{self.device} | {problem}", {})
        if not candidates.keys() <= row.keys():
            row.update(time_interleaved(candidates))
        return {name: row[name] for name in candidates}


def time_interleaved(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least time of each candidate in µs; they take turns, so that a disturbance hits all of them alike."""
    best = {name: _elapsed_us(run) for name, run in candidates.items()}
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            best[name] = min(best[name], _elapsed_us(run))
        if time.perf_counter() - started > BUDGET_S:
            break
    return best


def _elapsed_us(run: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - started) / 1e3
