"""Bars that say how far a command has come."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no annotations
    """A bar without tqdm's thread that redraws bars which stand still, and which no one would end."""

    monitor_interval = 0


def byte_bar(verb: str, total: int, talks: bool) -> Bar:
    """A bar over `total` bytes, on stderr; nothing when that is not a terminal, or when the command does not talk."""
    disable = None if talks else True  # None: where stderr is no terminal
    return Bar(total=total, desc=verb, unit="B", unit_scale=True, disable=disable, leave=False)


class Progress:
    """A bar over the stages of a build; quiet when stderr is not a terminal."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages

    def __enter__(self) -> Progress:
        self.bar = Bar(total=len(self.stages), file=sys.stderr, disable=None, bar_format="{desc:<16}{bar}| {elapsed}")
        self.bar.set_description_str(self.stages[0])
        return self

    def done(self) -> None:
        """The current stage is done."""
        self.bar.update()
        self.bar.set_description_str(self.stages[min(self.bar.n, len(self.stages) - 1)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
