"""Time tactics against each other, and remember the times in a cache file.

A key names the device and the versions that its times are valid for. A hit decides without timing, so two builds with
one cache choose the same tactics.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_text

ROUNDS = 7
BUDGET_S = 0.25
LONG_US = 20_000.0  # a shorter first run may have been slow because caches were cold
Result = TypeVar("Result")
Check = Callable[[str, Result], None]


class Clock(Protocol):
    """A way to measure the time of a call."""

    def __call__(self, run: Callable[[], Result]) -> tuple[float, Result]:
        """Run a candidate; return the time it takes in µs, and its result."""
        ...


def wall_us(run: Callable[[], Result]) -> tuple[float, Result]:
    """Measure the time that this thread waits for a call: a `Clock`."""
    started = time.perf_counter_ns()
    result = run()
    return (time.perf_counter_ns() - started) / 1e3, result


@dataclass
class TimingCache:
    """Times in microseconds by (device, problem, bucket) and tactic."""

    device: str
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    clock: Clock = wall_us

    @classmethod
    def load(cls, device: str, path: Path | None, clock: Clock = wall_us) -> TimingCache:
        """Read a cache file. A missing file gives an empty cache, a damaged one a `UserError`."""
        if path is None or not path.exists():
            return cls(device, clock=clock)
        if (times := _read(path)) is None:
            raise UserError(f"{path} is not a timing cache of the embedded backend; delete it, or name another file")
        return cls(device, times, clock)

    def save(self, path: Path) -> None:
        """Replace the file at `path`. Another kind of file stays, and so does one that cannot be written: both warn."""
        if path.exists() and _read(path) is None:  # TensorRT's cache has the same default name
            print(f"WARNING: {path} is not a timing cache of the embedded backend: it stays as it is", file=sys.stderr)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(self.times, indent=1, sort_keys=True))
        except OSError as error:  # the engine is worth more than its timings
            print(f"WARNING: the timings are not kept in {path}: {error.strerror}", file=sys.stderr)

    def join(self, path: Path) -> TimingCache:
        """Return this cache together with what its file holds now.

        So if two builds run at once, the second to end keeps the times of the first.
        """
        found = _read(path) or {} if path.exists() else {}
        return replace(self, times=self.times | {key: self.times.get(key, {}) | row for key, row in found.items()})

    def measure(
        self, problem: str, candidates: Mapping[str, Callable[[], Result]], prepare: Callable[[], Check[Result]]
    ) -> dict[str, float]:
        """Return the times of all candidates, from the cache if it has all of them: those were checked when timed.

        `prepare` is called before any candidate is timed. It returns the check of their results.
        """
        row = self.times.get(f"{self.device} | {problem}", {})
        if not candidates.keys() <= row.keys():
            row = row | time_interleaved(candidates, prepare(), self.clock)
            self.times[f"{self.device} | {problem}"] = row
        return {name: row[name] for name in candidates}


def _read(path: Path) -> dict[str, dict[str, float]] | None:
    """Return the times in a cache file, or None if it is another kind of file."""
    try:
        times: dict[str, dict[str, float]] = json.loads(path.read_bytes())
        assert all(isinstance(us, float) for row in times.values() for us in row.values())
    except (ValueError, AttributeError, AssertionError, IsADirectoryError):
        return None
    return times


def time_interleaved(
    candidates: Mapping[str, Callable[[], Result]], check: Check[Result], clock: Clock = wall_us
) -> dict[str, float]:
    """Return the least time of each candidate in µs; `check` gets the first result of each and may raise.

    Candidates take turns, so that a disturbance hits all of them alike. A candidate that is slow, and twice as slow as
    the best, is timed once.
    """
    best = {name: _checked_us(name, run, check, clock) for name, run in candidates.items()}
    bound = max(LONG_US, 2 * min(best.values(), default=0.0))
    hopeful = {name: run for name, run in candidates.items() if best[name] <= bound}
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in hopeful.items():
            best[name] = min(best[name], clock(run)[0])
        if time.perf_counter() - started > BUDGET_S:
            break
    return best


def _checked_us(name: str, run: Callable[[], Result], check: Check[Result], clock: Clock) -> float:
    elapsed_us, result = clock(run)
    check(name, result)
    return elapsed_us
