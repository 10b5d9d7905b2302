"""Time tactics against each other, and remember the times in a cache file.

A key names the device and the versions that its times are valid for. A hit decides without timing, so two builds with
one cache choose the same tactics.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from opt_trt.errors import UserError
from opt_trt.host.atomic import replace_text
from opt_trt.host.files import read_text
from opt_trt.host.json_file import parse_json
from opt_trt.plugins.tune.noise import BusyMachine, Clock, is_steady

ROUNDS = 7
ATTEMPTS, BETWEEN_ATTEMPTS_S = 3, 0.05  # to find the machine quiet: most disturbances are short
BUDGET_S = 0.25
LONG_US = 20_000.0  # a shorter first run may have been slow because caches were cold
Result = TypeVar("Result")
Check = Callable[[str, Result], None]


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
    busy: BusyMachine | None = None  # None if other programs do not disturb the clock
    spoilt: set[str] = field(default_factory=set)  # the keys that were timed on a busy machine
    num_timed: int = 0  # problems, since the file was read
    settled: frozenset[str] = frozenset()  # the keys whose times are taken as they are
    measured: Callable[[], None] = lambda: None  # called when a problem's times are known

    @classmethod
    def load(
        cls, device: str, path: Path | None, clock: Clock = wall_us, busy: BusyMachine | None = None
    ) -> TimingCache:
        """Read a cache file. A missing file gives an empty cache, a damaged one a `UserError`."""
        if path is None or not path.exists():
            return cls(device, clock=clock, busy=busy)
        if (times := _read(path)) is None:
            raise UserError(f"{path} is not a timing cache of the embedded backend; delete it, or name another file")
        return cls(device, times, clock, busy)

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

    def join(self, path: Path, replaces: bool = False) -> TimingCache:
        """Return this cache together with what its file holds now.

        So if two builds run at once, the second to end keeps the times of the first, unless it `replaces` them. Spoilt
        times are left out, and so are those that the file has for their keys.
        """
        found = _read(path) or {} if path.exists() else {}
        joined = dict(found)
        for key, row in self.times.items():
            joined[key] = found.get(key, {}) | row if replaces else row | found.get(key, {})
        return replace(self, times={key: row for key, row in joined.items() if key not in self.spoilt})

    def measure(
        self,
        problem: str,
        candidates: Mapping[str, Callable[[], Result]],
        prepare: Callable[[], Check[Result]],
        is_doubted: bool = False,
    ) -> dict[str, float]:
        """Return the times of all candidates, from the cache if it has all of them: those were checked when timed.

        `prepare` is called before any candidate is timed. It returns the check of their results. Times that are doubted
        are measured again, as on a busy machine, unless they are settled.
        """
        key = f"{self.device} | {problem}"
        row = self.times.get(key, {})
        if (is_doubted and key not in self.settled) or not candidates.keys() <= row.keys():
            row = row | self._timed(key, candidates, prepare(), is_doubted)
            self.times[key] = row
        self.measured()
        return {name: row[name] for name in candidates}

    def _timed(
        self, key: str, candidates: Mapping[str, Callable[[], Result]], check: Check[Result], is_doubted: bool
    ) -> dict[str, float]:
        """Time again while the machine is busy, and with its own clock if it stays so."""
        self.num_timed += 1
        for _ in range(0 if is_doubted else ATTEMPTS):
            samples = sample_interleaved(candidates, check, self.clock)
            if self.busy is None or (is_steady(samples) and not self.busy.is_busy()):
                return _least(samples)
            time.sleep(BETWEEN_ATTEMPTS_S)
        assert self.busy is not None, f"{key}: times of this clock are not doubted"
        self.spoilt.add(key)
        return _least(sample_interleaved(candidates, check, self.busy.clock))


def _read(path: Path) -> dict[str, dict[str, float]] | None:
    """Return the times in a cache file, or None if it is another kind of file."""
    try:
        times: dict[str, dict[str, float]] = parse_json(read_text(path))
        assert all(isinstance(us, float) for row in times.values() for us in row.values())
    except (UserError, ValueError, AttributeError, AssertionError):  # UserError: no regular file, or too large
        return None
    return times


def time_interleaved(
    candidates: Mapping[str, Callable[[], Result]], check: Check[Result], clock: Clock = wall_us
) -> dict[str, float]:
    """Return the least time of each candidate in µs; see `sample_interleaved`."""
    return _least(sample_interleaved(candidates, check, clock))


def sample_interleaved(
    candidates: Mapping[str, Callable[[], Result]], check: Check[Result], clock: Clock = wall_us
) -> dict[str, list[float]]:
    """Return the times of each candidate in µs; `check` gets the first result of each and may raise.

    Candidates take turns, so that a disturbance hits all of them alike. A candidate that is slow, and twice as slow as
    the best, is timed once.
    """
    samples = {name: [_checked_us(name, run, check, clock)] for name, run in candidates.items()}
    bound = max(LONG_US, 2 * min((first for [first] in samples.values()), default=0.0))
    hopeful = {name: run for name, run in candidates.items() if samples[name][0] <= bound}
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in hopeful.items():
            samples[name].append(clock(run)[0])
        if time.perf_counter() - started > BUDGET_S:
            break
    return samples


def _least(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: min(times) for name, times in samples.items()}


def _checked_us(name: str, run: Callable[[], Result], check: Check[Result], clock: Clock) -> float:
    elapsed_us, result = clock(run)
    check(name, result)
    return elapsed_us
