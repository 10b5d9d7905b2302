"""The report of a run: a table, and the same numbers as JSON values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ceilings import TOLERANCE, MachineCeilings
from costs import Computes, context_flops, step_bytes, step_flops
from models import Shape
from turns import Load, Spread, Turn, context_seconds, ratio, read_shares, step_seconds

OURS = "engine"


@dataclass(frozen=True)
class RunnerRow:
    """The times of one runner's phases, their ratios to ours, its rates, and the error of its logits."""

    name: str
    computes: Computes
    context: Spread
    context_ratio: Spread
    step: Spread
    step_ratio: Spread
    context_gflops: float  # useful operations per second
    step_gflops: float
    error: float | None  # of its logits, as a share of float32's; None if it could not be computed
    read_share: Spread  # the rate of the bytes that a step has to read, as a share of the measured reading rate
    turns: Sequence[Turn]


@dataclass(frozen=True)
class Measurement:
    """The measurement of one load: ceilings before and after it, a row per runner, a reason per missing runner."""

    shape: Shape
    load: Load
    before: MachineCeilings
    after: MachineCeilings
    rows: Sequence[RunnerRow]
    absent: Mapping[str, str]

    @property
    def counts(self) -> bool:
        """True if the machine's ceilings were the same before and after."""
        return self.before.agrees(self.after)

    @property
    def ceilings(self) -> MachineCeilings:
        """The best ceilings of both measurements."""
        return self.before.best(self.after)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"counts": self.counts, "drift": self.before.drift(self.after)}


def runner_rows(
    shape: Shape,
    load: Load,
    computes: Mapping[str, Computes],
    errors: Mapping[str, float],
    turns: Mapping[str, Sequence[Turn]],
) -> list[RunnerRow]:
    """Return the rows of all runners, ours first."""
    steps = {name: step_seconds(taken, load.output_len) for name, taken in turns.items()}
    contexts = {name: context_seconds(taken) for name, taken in turns.items()}
    rows = []
    for name, taken in turns.items():
        context, step = statistics.median(contexts[name]), statistics.median(steps[name])
        rows.append(RunnerRow(
            name, computes[name], Spread.of(contexts[name]), ratio(contexts[name], contexts[OURS]),
            Spread.of(steps[name]), ratio(steps[name], steps[OURS]),
            context_flops(shape, load) / context / 1e9, step_flops(shape, load) / step / 1e9, errors.get(name),
            Spread.of(read_shares(taken, step_bytes(shape, computes[name], load), load.output_len)), taken,
        ))  # fmt: skip
    return rows


# What the fields of `MachineCeilings` are called, and their units.
CEILINGS = (("reading", "GB/s"), ("fp32", "GFLOP/s"), ("bf16", "GFLOP/s"))


def ceilings_line(before: MachineCeilings, after: MachineCeilings) -> str:
    """Return a line with both measurements and with the validity of the run."""
    pairs = zip(CEILINGS, asdict(before).values(), asdict(after).values(), strict=True)
    moved = ", ".join(f"{name} {a:.1f} then {b:.1f} {unit}" for (name, unit), a, b in pairs)
    drift = before.drift(after)
    verdict = "the run is valid" if drift <= TOLERANCE else f"more than {TOLERANCE:.0%}: the run is NOT valid"
    return f"ceilings: {moved}; moved by {drift:.1%}, {verdict}"


def measurement_table(measurement: Measurement) -> str:
    """Return a line per runner, then the types of each runner, then missing runners with their reasons."""
    load, ceilings = measurement.load, measurement.ceilings
    lines = [
        f"batch {load.batch_size}, {load.input_len} + {load.output_len} tokens; median (min-max)",
        f"{'':<26}{'context ms':>24}{'x ours':>18}{'of bf16':>9}{'ms/step':>24}{'x ours':>18}{'of read':>18}"
        f"{'error':>11}",
    ]
    for row in measurement.rows:
        lines.append(
            f"{row.name:<26}{row.context.text(1, 1e3):>24}{row.context_ratio.text(2):>18}"
            f"{row.context_gflops / ceilings.bf16_gflops:>9.2f}{row.step.text(2, 1e3):>24}"
            f"{row.step_ratio.text(2):>18}{row.read_share.text(2):>18}{percent(row.error):>11}"
        )
    lines += [f"  {row.name}: {row.computes}" for row in measurement.rows]
    lines += [f"  {name}: NOT MEASURED, {why}" for name, why in measurement.absent.items()]
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """Write a share in percent with three decimals, or a dash if it is unknown."""
    return "-" if share is None else f"{share:.3%}".replace("%", " %")
