"""The bar of a build shows its stage, the parts of it that are done, and a clock that ticks."""

from __future__ import annotations

import io
import sys
from threading import Event

import pytest

from opt_trt.host.progress import Progress


class Terminal(io.StringIO):
    """A terminal that sets `ticked` when something was written `ticks` times."""

    def __init__(self, ticks: int = 0) -> None:
        super().__init__()
        self.ticked, self._left = Event(), ticks

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._left -= 1
        if self._left <= 0:
            self.ticked.set()
        return super().write(text)


def test_the_clock_ticks_while_a_stage_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(ticks=30))
    with Progress(("tactics",), tick_s=0.001):
        assert terminal.ticked.wait(60)


def test_parts_of_a_stage_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(("plugin library", "tactics", "programs")) as progress:
        progress.done()
        progress.count(3)
        for _ in range(4):  # one is repeated
            progress.part_done()
        progress.bar.refresh()
        progress.done()
        progress.bar.refresh()
    shown = terminal.getvalue()
    assert "tactics 3/3" in shown
    assert "4/3" not in shown
    assert shown.index("plugin library") < shown.index("tactics 3/3") < shown.index("programs")


def test_nothing_is_shown_and_no_clock_runs_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with Progress(("tactics",), tick_s=0.001) as progress:
        progress.count(2)
        progress.part_done()
        assert not progress._clock.is_alive()
    assert log.getvalue() == ""
