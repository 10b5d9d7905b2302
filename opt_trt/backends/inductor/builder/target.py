"""The part of a build that differs between devices: what it compiles, and how."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opt_trt.backends.inductor.builder.limits import ResolvedLimits
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.host.cache import cache_dir
from opt_trt.host.progress import Progress
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.noise import BusyMachine, Clock
from opt_trt.plugins.tune.timing import TimingCache, wall_us

MOST_SPOILT = 0.1  # of the problems, without a word: every machine is disturbed now and then
SPOILT = (
    "WARNING: other programs used this machine while {problems} timed: the tactics were chosen by the time that one "
    "thread computes, and their timings are not kept; on a quiet machine, build again with --retime"
)


@dataclass(frozen=True)
class Compiled:
    """Tactics and programs of an engine; the plan says how weights are laid out."""

    plan: TacticPlan
    tuned: list[TunedProblem]
    programs: dict[str, list[str]]  # files by program: its name is a kind, or a kind, a phase and a bucket
    device: dict[str, str]  # the device that it was compiled for, and what a machine must have to run the engine
    library: Path | None  # the library of the operators that programs call
    notes: tuple[str, ...] = ()  # lines to print after the build


class TargetDescription(Protocol):
    """The device of a build, in words."""

    @property
    def keeps_weights(self) -> str:
        """The way the device holds weights while an engine runs."""
        ...

    def describe(self) -> str:
        """Describe the device, with what it means for compilers."""
        ...

    def to_compile(self) -> str:
        """Describe what is compiled for the device."""
        ...


class Target(TargetDescription, Protocol):
    """A device to build for."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of `compile`, as progress shows them."""
        ...

    def compile(
        self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: ResolvedLimits, progress: Progress
    ) -> Compiled:
        """Choose tactics and compile programs; report to `progress` the end of each stage but the last."""
        ...


@contextmanager
def timings(
    config: BuildConfig, device: str, clock: Clock = wall_us, busy: BusyMachine | None = None
) -> Iterator[TimingCache]:
    """Open the timing cache to tune with, and save it with the new times.

    It is the file that the flags name, or else the user's own. The user's own is updated only if it was read, or if all
    is timed anew, and never with times of a busy machine.
    """
    own = cache_dir() / "timing.cache"
    earlier = Path(config.input_timing_cache) if config.input_timing_cache else own
    cache = TimingCache.load(device, None if config.retime else earlier, clock, busy)
    if config.input_timing_cache:  # with the same file, builds choose the same tactics
        cache.settled = frozenset(cache.times)
    yield cache
    cache.save(Path(config.output_timing_cache))
    if earlier == own:
        cache.join(own, config.retime).save(own)
    if (spoilt := len(cache.spoilt)) > MOST_SPOILT * cache.num_timed:
        print(SPOILT.format(problems="1 problem was" if spoilt == 1 else f"{spoilt} problems were"), file=sys.stderr)
