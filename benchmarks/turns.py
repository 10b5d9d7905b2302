"""Take turns at the same work, and what the seconds of the turns say: medians, spreads, ratios of pairs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ceilings import steady_read_rate

Prompts = list[list[int]]  # ids, a row each, all of one length
REST_SECONDS = 0.3  # before a turn: threads of the one before may still spin for work


@dataclass(frozen=True)
class Load:
    """What is generated in one measurement."""

    batch_size: int
    input_len: int
    output_len: int

    def prompts(self, seed: int) -> Prompts:
        """Random ids; never twice the same ones, so that nobody gains by remembering prompts."""
        chance = random.Random(seed)
        return [chance.choices(range(10, 50_000), k=self.input_len) for _ in range(self.batch_size)]


@dataclass(frozen=True)
class Turn:
    """Seconds until the first token of all rows, and until the last; GB/s of nothing but reading, around the latter."""

    context: float
    total: float
    read_gbs: float


class Runner(Protocol):
    """Whoever takes part."""

    def seconds(self, prompts: Prompts, output_len: int) -> float:
        """Generate exactly so many tokens for each prompt, greedily; by the clock."""
        ...


def take_turns(runners: Mapping[str, Runner], load: Load, rounds: int) -> dict[str, list[Turn]]:
    """The turns of each runner, in rounds of one turn each; a first round, to warm up, is not recorded."""
    turns: dict[str, list[Turn]] = {name: [] for name in runners}
    for index in range(rounds + 1):
        for name, runner in runners.items():
            turn = take_turn(runner, load, index)
            if index:
                turns[name].append(turn)
    return turns


def take_turn(runner: Runner, load: Load, index: int) -> Turn:
    """One context phase to fill caches and wake threads, one for the record, then a whole generation.

    What memory gives moves by a third within seconds where neighbours share it, so it is measured beside each turn.
    """
    time.sleep(REST_SECONDS)
    runner.seconds(load.prompts(3 * index), 2)
    context = runner.seconds(load.prompts(3 * index + 1), 1)
    before = steady_read_rate()
    total = runner.seconds(load.prompts(3 * index + 2), load.output_len)
    return Turn(context, total, statistics.mean([before, steady_read_rate()]))


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of several numbers."""

    median: float
    least: float
    largest: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return Spread(statistics.median(values), min(values), max(values))

    def text(self, digits: int, scale: float = 1.0) -> str:
        """`median (least-largest)`."""
        middle, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.least, self.largest))
        return f"{middle} ({low}-{high})"


def context_seconds(turns: Sequence[Turn]) -> list[float]:
    """Of the context phase, turn by turn."""
    return [turn.context for turn in turns]


def step_seconds(turns: Sequence[Turn], output_len: int) -> list[float]:
    """Of one step of the generation phase, turn by turn; the context phase is taken at its median."""
    context = statistics.median(context_seconds(turns))
    return [(turn.total - context) / (output_len - 1) for turn in turns]


def read_shares(turns: Sequence[Turn], nbytes: float, output_len: int) -> list[float]:
    """What steps that read so many bytes took of the rate of reading beside them, turn by turn."""
    steps = step_seconds(turns, output_len)
    return [nbytes / step / 1e9 / turn.read_gbs for step, turn in zip(steps, turns, strict=True)]


def ratio(other: Sequence[float], own: Sequence[float]) -> Spread:
    """How many times as long the other takes, pair by pair of the same round."""
    return Spread.of([a / b for a, b in zip(other, own, strict=True)])
