"""Capture calls on a GPU as CUDA graphs. A replay takes no time for launches, in a session and when timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch

Result = TypeVar("Result")
WARM_UP = 3  # calls before a capture, which load kernels and let libraries allocate their memory
CAPTURING = Lock()  # a process can capture one graph at a time: sessions of several threads take turns


@dataclass(frozen=True)
class Captured(Generic[Result]):
    """A graph, and the result that its replays overwrite."""

    graph: torch.cuda.CUDAGraph
    result: Result

    def replay(self) -> None:
        """Run the captured call once more, on what its inputs hold now."""
        self.graph.replay()


def capture(run: Callable[[], Result], pool: Any = None) -> Captured[Result]:
    """Warm `run` up and capture it; graphs that never replay at the same time may share a memory `pool`."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads of the user's program may use the GPU meanwhile.
    with CAPTURING, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return Captured(graph, result)


class SharedCaptures:
    """Captures whose graphs share memory, because no two of them replay at the same time.

    The memory is freed with the last graph. The next graph then starts a new pool, because torch does not accept the
    pool of graphs that are gone.
    """

    def __init__(self) -> None:
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Callable[[], Result]) -> Captured[Result]:
        """See `capture`."""
        captured = capture(run, next((graph.pool() for graph in self._living), None))
        self._living.add(captured.graph)
        return captured


def put(work: Callable[[], object]) -> torch.cuda.Event:
    """Launch work after earlier work; return the event that marks its end on the GPU."""
    work()
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def event_us(run: Callable[[], object]) -> float:
    """Measure the time in µs from the beginning of `run` to its end on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


class GraphClock:
    """`timing.Clock` of a GPU: it times replays, because an engine's steps are replays. Each call is captured once."""

    def __init__(self) -> None:
        self._captured: WeakKeyDictionary[Callable[[], Any], Captured[Any]] = WeakKeyDictionary()

    def __call__(self, run: Callable[[], Result]) -> tuple[float, Result]:
        """Return the time in µs and the result, which the next replay overwrites."""
        if run not in self._captured:
            self._captured[run] = capture(run)
        captured = self._captured[run]
        return event_us(captured.replay), captured.result
