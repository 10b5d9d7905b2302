"""Progress bars: ours over bytes and over the stages of a build, and those of other libraries kept out of logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no annotations
    """A bar without tqdm's monitor thread, which would never end."""

    monitor_interval = 0


def byte_bar(verb: str, total: int, talks: bool) -> Bar:
    """Return a bar over `total` bytes; it shows nothing unless stderr is a terminal and the command `talks`."""
    disable = None if talks else True  # None hides the bar unless stderr is a terminal
    return Bar(total=total, desc=verb, unit="B", unit_scale=True, disable=disable, leave=False)


class Progress:
    """A bar over the stages of a build, with a clock that ticks; it shows nothing unless stderr is a terminal."""

    def __init__(self, stages: tuple[str, ...], tick_s: float = 1.0) -> None:
        self.stages = stages
        self._tick_s = tick_s
        self._is_over = Event()
        self._parts = (0, 0)  # of the stage: done, all

    def __enter__(self) -> Progress:
        self.bar = Bar(total=len(self.stages), file=sys.stderr, disable=None, bar_format="{desc:<16}{bar}| {elapsed}")
        self.bar.set_description_str(self.stages[0])
        self._clock = Thread(target=self._tick, daemon=True)
        if not self.bar.disable:
            self._clock.start()
        return self

    def done(self) -> None:
        """Mark the current stage as done."""
        self.bar.update()
        self._parts = (0, 0)
        self.bar.set_description_str(self.stages[min(self.bar.n, len(self.stages) - 1)])

    def count(self, parts: int) -> None:
        """Say how many parts the current stage has."""
        self._parts = (0, parts)

    def part_done(self) -> None:
        """Mark a part of the current stage as done; parts beyond those that were counted are repetitions."""
        done, parts = self._parts
        self._parts = (min(done + 1, parts), parts)
        self.bar.set_description_str(f"{self.stages[self.bar.n]} {self._parts[0]}/{parts}")

    def _tick(self) -> None:
        while not self._is_over.wait(self._tick_s):
            self.bar.refresh()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._clock.is_alive():
            self._clock.join()
        self.bar.close()


@contextmanager
def quiet_unless_terminal(
    is_enabled: Callable[[], bool], disable: Callable[[], None], enable: Callable[[], None]
) -> Iterator[None]:
    """Switch the progress bars of another library off during the block unless stderr is a terminal."""
    if sys.stderr.isatty() or not is_enabled():
        yield
        return
    disable()
    try:
        yield
    finally:
        enable()
