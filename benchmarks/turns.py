"""Turns of several runners at the same work, and their statistics: medians, spreads, ratios of pairs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ceilings import steady_read_rate

Prompts = list[list[int]]  # ids, a row each, all of one length
REST_SECONDS = 0.3  # before a turn, because threads of the previous runner may still spin for work


@dataclass(frozen=True)
class Load:
    """The work of one measurement."""

    batch_size: int
    input_len: int
    output_len: int

    def prompts(self, seed: int) -> Prompts:
        """Return random ids, different for each seed, so that no runner gains from a cache of prompts."""
        chance = random.Random(seed)
        return [chance.choices(range(10, 50_000), k=self.input_len) for _ in range(self.batch_size)]


@dataclass(frozen=True)
class Turn:
    """Seconds to the first token of all rows, seconds to the last, and the reading rate measured around the latter."""

    context: float
    total: float
    read_gbs: float


class TimedRunner(Protocol):
    """A runner whose generations are timed."""

    def seconds(self, prompts: Prompts, output_len: int) -> float:
        """Generate exactly `output_len` tokens for each prompt, greedily; return the wall-clock seconds."""
        ...


def take_turns(runners: Mapping[str, TimedRunner], load: Load, rounds: int) -> dict[str, list[Turn]]:
    """Take turns in rounds of one turn per runner; return them without the first round, which warms up."""
    turns: dict[str, list[Turn]] = {name: [] for name in runners}
    for index in range(rounds + 1):
        for name, runner in runners.items():
            turn = take_turn(runner, load, index)
            if index:
                turns[name].append(turn)
    return turns


def take_turn(runner: TimedRunner, load: Load, index: int) -> Turn:
    """Run a context phase to fill caches and wake threads, a second one that is timed, then a whole generation.

    The rate of a memory that is shared with other machines may change by a third within seconds, so it is measured
    before and after the generation.
    """
    time.sleep(REST_SECONDS)
    runner.seconds(load.prompts(3 * index), 2)
    context = runner.seconds(load.prompts(3 * index + 1), 1)
    before = steady_read_rate()
    total = runner.seconds(load.prompts(3 * index + 2), load.output_len)
    return Turn(context, total, statistics.mean([before, steady_read_rate()]))


@dataclass(frozen=True)
class Spread:
    """The median, the least and the largest of several numbers."""

    median: float
    least: float
    largest: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return Spread(statistics.median(values), min(values), max(values))

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Write `median (least-largest)`."""
        middle, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.least, self.largest))
        return f"{middle} ({low}-{high})"


def context_seconds(turns: Sequence[Turn]) -> list[float]:
    """Return the seconds of the context phase, turn by turn."""
    return [turn.context for turn in turns]


def step_seconds(turns: Sequence[Turn], output_len: int) -> list[float]:
    """Return the seconds of one generation step, turn by turn; the median of the context phase is subtracted."""
    context = statistics.median(context_seconds(turns))
    return [(turn.total - context) / (output_len - 1) for turn in turns]


def read_shares(turns: Sequence[Turn], nbytes: float, output_len: int) -> list[float]:
    """Return the shares of the reading rate that steps of `nbytes` reached, turn by turn."""
    steps = step_seconds(turns, output_len)
    return [nbytes / step / 1e9 / turn.read_gbs for step, turn in zip(steps, turns, strict=True)]


def ratio(other: Sequence[float], own: Sequence[float]) -> Spread:
    """Return how many times as long the other runner takes, compared in the same round."""
    return Spread.of([a / b for a, b in zip(other, own, strict=True)])
