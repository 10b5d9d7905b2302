"""Calls on a GPU as CUDA graphs: captured once, then replayed without the time that launches take, or timed so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch

Result = TypeVar("Result")
WARM_UP = 3  # calls before a capture: kernels are loaded by them, and libraries take their memory
CAPTURING = Lock()  # a process may capture once at a time: sessions of several threads wait for each other


@dataclass(frozen=True)
class Captured(Generic[Result]):
    """A graph, and what its replays write."""

    graph: torch.cuda.CUDAGraph
    result: Result

    def replay(self) -> None:
        """Run what was captured once more, on whatever its inputs hold now."""
        self.graph.replay()


def capture(run: Callable[[], Result], pool: Any = None) -> Captured[Result]:
    """A graph of `run`, after the calls that warm it up; graphs that are never replayed together may share a `pool`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile: those of the program a session runs in.
    with CAPTURING, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return Captured(graph, result)


class SharedCaptures:
    """Captures whose graphs share memory, as no two of them are ever replayed together.

    Once none of them is left the memory is gone, and the next one has some of its own: torch takes no dead pool again.
    """

    def __init__(self) -> None:
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Callable[[], Result]) -> Captured[Result]:
        """See `capture`."""
        captured = capture(run, next((graph.pool() for graph in self._living), None))
        self._living.add(captured.graph)
        return captured


def put(work: Callable[[], object]) -> torch.cuda.Event:
    """Launch work behind what was launched before; the event is when the GPU has done it."""
    work()
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def event_us(run: Callable[[], object]) -> float:
    """The time from the begin of `run` to its end on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


class GraphClock:
    """`timing.Clock` of a GPU: the time of a replay, as steps of an engine are replays; calls are captured once."""

    def __init__(self) -> None:
        self._captured: WeakKeyDictionary[Callable[[], Any], Captured[Any]] = WeakKeyDictionary()

    def __call__(self, run: Callable[[], Result]) -> tuple[float, Result]:
        """µs, and the result, which the next replay overwrites."""
        if run not in self._captured:
            self._captured[run] = capture(run)
        captured = self._captured[run]
        return event_us(captured.replay), captured.result
