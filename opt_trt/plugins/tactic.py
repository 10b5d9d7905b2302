"""Choose a tactic per bucket of a problem from measured times."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

# Upper bounds of the buckets of packed tokens in a step; one more bucket is open.
BUCKETS = (1, 4, 8, 16, 64, 256)


@dataclass(frozen=True)
class Tactic:
    """One implementation that a plugin may choose.

    Tactics of one `layout` read the same stored weights and share one call in a program, so all buckets of a problem
    take their tactics from one layout. `parameter` is a number that a GPU's kernel is given; kernels of a CPU are found
    by the name. `tolerance` is the largest allowed difference from the reference, relative to its largest value.
    `needs` is a processor flag beyond those of the instruction set that is compiled for.
    """

    name: str
    layout: str
    parameter: int = 0
    tolerance: float = 2e-5  # fp32 sums of up to 50,000 terms in another order differ by a tenth of that
    needs: str | None = None

    def lacks(self, extras: Collection[str]) -> str | None:
        """Return what the tactic needs and a processor with these extra flags lacks, or None."""
        return f"needs {self.needs}" if self.needs and self.needs not in extras else None


@dataclass(frozen=True)
class Timing:
    """The time of one tactic on one bucket, or the reason why it did not take part."""

    tactic: Tactic
    elapsed_us: float | None
    reason: str | None = None

    def times(self, factor: float) -> Timing:
        """Return the timing of a problem that is so many times as large."""
        return self if self.elapsed_us is None else replace(self, elapsed_us=self.elapsed_us * factor)


@dataclass(frozen=True)
class Choice:
    """The winners of a problem: one layout, and a tactic per bucket."""

    layout: str
    tactics: tuple[Tactic, ...]


def choose(timings: Sequence[Sequence[Timing]], weights: Sequence[float]) -> Choice:
    """Choose the layout with the least weighted sum of log times over the buckets, and its fastest tactic in each.

    Because of the logs, a bucket of 256 tokens does not outvote the single token that most steps have. In a tie the
    earlier tactic wins.
    """
    layouts = list(dict.fromkeys(t.tactic.layout for bucket in timings for t in bucket if t.elapsed_us is not None))
    best = {layout: [_fastest(bucket, layout) for bucket in timings] for layout in layouts}
    whole = {layout: [t for t in row if t is not None] for layout, row in best.items()}
    whole = {layout: row for layout, row in whole.items() if len(row) == len(timings)}
    assert whole, f"no layout serves every bucket: {timings}"
    cost = {
        layout: sum(w * math.log(t.elapsed_us or 1.0) for w, t in zip(weights, row, strict=True))
        for layout, row in whole.items()
    }
    layout = min(cost, key=lambda name: cost[name])
    return Choice(layout, tuple(t.tactic for t in whole[layout]))


def _fastest(bucket: Sequence[Timing], layout: str) -> Timing | None:
    timed = [t for t in bucket if t.tactic.layout == layout and t.elapsed_us is not None]
    return min(timed, key=lambda t: t.elapsed_us or math.inf, default=None)


def bucket_weights(opt_num_tokens: int | None) -> list[float]:
    """Return the weight of each bucket: 1, or 0 for all but the one that `opt_num_tokens` falls into."""
    if opt_num_tokens is None:
        return [1.0] * (len(BUCKETS) + 1)
    chosen = sum(opt_num_tokens > bound for bound in BUCKETS)
    return [float(i == chosen) for i in range(len(BUCKETS) + 1)]


def winners(choices: Mapping[str, Choice]) -> dict[str, list[str]]:
    """Return the winners' names, for the engine's `config.json`."""
    return {site: [t.name for t in choice.tactics] for site, choice in choices.items()}
