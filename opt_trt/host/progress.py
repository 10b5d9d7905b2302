"""Progress bars: ours over bytes and over the stages of a build, and those of other libraries kept out of logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """A bar over the stages of a build; it shows nothing unless stderr is a terminal."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages

    def __enter__(self) -> Progress:
        self.bar = Bar(total=len(self.stages), file=sys.stderr, disable=None, bar_format="{desc:<16}{bar}| {elapsed}")
        self.bar.set_description_str(self.stages[0])
        return self

    def done(self) -> None:
        """Mark the current stage as done."""
        self.bar.update()
        self.bar.set_description_str(self.stages[min(self.bar.n, len(self.stages) - 1)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
