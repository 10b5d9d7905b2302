"""What a build makes for a device, and how: the part of it that differs between devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opt_trt.backends.inductor.builder.limits import Resolved
from opt_trt.checkpoint.reader import Checkpoint
from opt_trt.config.build_flags import BuildConfig
from opt_trt.host.cache import cache_dir
from opt_trt.host.progress import Progress
from opt_trt.plugins.ops.plan import TacticPlan
from opt_trt.plugins.tune.common import TunedProblem
from opt_trt.plugins.tune.timing import Clock, TimingCache, wall_us


@dataclass(frozen=True)
class Made:
    """Tactics and programs; weights are laid out by the plan."""

    plan: TacticPlan
    table: list[TunedProblem]
    programs: dict[str, list[str]]  # files by name: a kind, or kind_variant
    device: dict[str, str]  # what a machine must have to run the engine, and for what it was compiled
    library: Path | None  # of operators that programs call
    notes: tuple[str, ...] = ()  # lines for whoever builds


class Described(Protocol):
    """The device of a build, in words."""

    @property
    def keeps_weights(self) -> str:
        """How it holds weights while an engine runs."""
        ...

    def describe(self) -> str:
        """The device and what is compiled for it."""
        ...

    def to_compile(self) -> str:
        """What is compiled."""
        ...


class Maker(Described, Protocol):
    """The builder's side of a device."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Of `make`, as progress shows them."""
        ...

    def make(self, ranks: Sequence[Checkpoint], config: BuildConfig, limits: Resolved, progress: Progress) -> Made:
        """Choose tactics and compile; tells `progress` of every stage that is done but the last."""
        ...


@contextmanager
def timings(config: BuildConfig, device: str, clock: Clock = wall_us) -> Iterator[TimingCache]:
    """Times of a device's tactics to tune with: those the flags name, or this user's, which then know the new ones."""
    own = cache_dir() / "timing.cache"
    earlier = Path(config.input_timing_cache) if config.input_timing_cache else own
    cache = TimingCache.load(device, earlier, clock)
    yield cache
    cache.save(Path(config.output_timing_cache))
    if earlier == own:
        cache.join(own).save(own)
