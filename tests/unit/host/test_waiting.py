"""Polling sees a condition at once if it holds at once, and never takes longer than its timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from opt_trt.host.waiting import Backoff, wait_until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Replace the clock by one that only naps advance; return the naps."""
    naps: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(naps))
    monkeypatch.setattr(time, "sleep", naps.append)
    yield naps


def test_naps_grow_up_to_the_longest(clock: list[float]) -> None:
    answers = iter([False] * 5 + [True])
    assert wait_until(lambda: next(answers), Backoff(0.0, 1.0, 4.0))
    assert clock == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_what_is_not_so_in_time_is_given_up(clock: list[float]) -> None:
    assert not wait_until(lambda: False, Backoff(0.0, 1.0, 1.0, timeout=3.0))
    assert clock == [1.0] * 4


def test_at_first_nobody_sleeps(clock: list[float]) -> None:
    looks = iter([False] * 100 + [True])
    assert wait_until(lambda: next(looks), Backoff(1.0, 1.0, 1.0))
    assert clock == []
