"""Captures of steps, as far as they show without a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Event, Thread
from unittest import mock

import pytest

from opt_trt.plugins.cuda.graphs import WARM_UP, SharedCaptures, capture


@pytest.fixture
def captures(monkeypatch):
    """What was captured into, in that order; torch's calls do nothing else."""
    begun = []

    @contextmanager
    def graph(graph, pool, capture_error_mode):
        begun.append(pool)
        yield

    for name in ("Stream", "stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(f"torch.cuda.{name}", mock.MagicMock())
    monkeypatch.setattr("torch.cuda.graph", graph)
    return begun


def test_threads_capture_one_after_the_other(captures):
    """Torch has one stream for all captures of a process."""
    calls, warm, others = [], Event(), []

    def slow():
        calls.append(captures.copy())
        if len(calls) > WARM_UP:  # it is being captured
            others.append(Thread(target=capture, args=(warm.set, "second")))
            others[0].start()
            warm.wait()
            others[0].join(0.1)
        return captures.copy()

    assert capture(slow, "first").result == ["first"]
    others[0].join()
    assert captures == ["first", "second"]


def test_graphs_share_memory_as_long_as_one_of_them_is_left(captures, monkeypatch):
    """Torch frees a pool with its last graph, and stops at a capture into one that is gone."""

    class Graph:
        def pool(self):
            return "shared"

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    shared = SharedCaptures()
    graphs = [shared(lambda: None) for _ in range(3)]
    del graphs[0]
    graphs.append(shared(lambda: None))
    assert captures == [None, "shared", "shared", "shared"]
    graphs.clear()
    shared(lambda: None)
    assert captures[4:] == [None]
