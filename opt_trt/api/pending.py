"""`PendingOutput`: the answer to one prompt while it is computed, to iterate over, to await or to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Self

from opt_trt.api.collect import OutputCollector, OutputUpdate, with_listeners
from opt_trt.api.outputs import RequestOutput
from opt_trt.api.prompt_requests import PromptRequests
from opt_trt.api.wording import in_python
from opt_trt.config.field_types import checked
from opt_trt.errors import UserError
from opt_trt.runtime.worker import Worker

# How often a waiting caller looks for Ctrl-C: one that arrives just before the wait, or in another thread, does not end
# the wait.
CTRL_C_SECONDS = 0.2


class Arrivals:
    """Updates from the worker's thread, for a thread or a task that waits for them."""

    def __init__(self) -> None:
        self._updates: SimpleQueue[OutputUpdate] = SimpleQueue()
        self._waiting: asyncio.Future[None] | None = None

    def put(self, update: OutputUpdate) -> None:
        """Add an update; RuntimeError if the event loop of the task that waits is closed."""
        self._updates.put(update)
        if (waiting := self._waiting) is not None:
            waiting.get_loop().call_soon_threadsafe(_wake, waiting)

    def get(self, seconds: float) -> OutputUpdate:
        """Return the next update; `Empty` if none arrives within some seconds."""
        return self._updates.get(timeout=seconds)

    def get_nowait(self) -> OutputUpdate:
        """Return the next update that is there; `Empty` if there is none."""
        return self._updates.get_nowait()

    async def next(self) -> OutputUpdate:
        """Return the next update."""
        while True:
            with suppress(Empty):
                return self.get_nowait()
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                if self._updates.empty():  # none came before `put` could know of the wait
                    await self._waiting
            finally:
                self._waiting = None


class PendingOutput:
    """The answer to one prompt while it is computed; it is an asynchronous iterator, an awaitable and a future.

    `async for` yields what the outputs have so far whenever there are more tokens. `await` and `result()` give the
    finished answer. The request ends when nothing refers to its answer any more.
    """

    def __init__(self, worker: Worker, requests: PromptRequests, streaming: bool) -> None:
        self.request_id = requests.request_id
        self._requests, self._streaming = requests, streaming
        self._worker, self._arrived, self._collector = worker, Arrivals(), OutputCollector([requests])
        self._ended: Exception | None = None
        self._submitted = worker.submit(with_listeners([requests], self._arrived.put, whole=not streaming))

    @property
    def finished(self) -> bool:
        """True if all tokens have been taken."""
        return not self._collector.num_missing

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the finished answer; TimeoutError after some seconds, in which case the request goes on."""
        seconds = checked("timeout", float | None, timeout)
        end = None if seconds is None else time.monotonic() + seconds
        while self._is_open():
            left = CTRL_C_SECONDS if end is None else min(CTRL_C_SECONDS, end - time.monotonic())
            try:
                update = self._arrived.get(max(0.0, left))
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"the answer is not finished after {timeout} seconds") from None
            except BaseException:  # Ctrl-C
                self.abort()
                raise
            else:
                self._add(update)
        return self._collector.output(0)

    async def aresult(self) -> RequestOutput:
        """Return the finished answer."""
        while self._is_open():
            await self._take()
        return self._collector.output(0)

    def abort(self) -> None:
        """End the request, if it is not finished."""
        self._worker.cancel(self._submitted)
        if not self.finished:
            self._ended = self._ended or UserError("the request was aborted: there is no finished answer")

    async def aclose(self) -> None:
        """End the request, if it is not finished, as leaving the loop does."""
        self.abort()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished or self._ended is not None:
            raise StopAsyncIteration
        if self._streaming and self._requests.requests[0].sampling.num_beams > 1:
            self.abort()
            raise UserError(
                "beams change until the last token: they cannot be streamed; await the answer, give streaming=False, "
                "or drop use_beam_search"
            )
        await self._take()
        while not (self._streaming or self.finished):
            await self._take()
        with suppress(Empty):
            while True:
                self._add(self._arrived.get_nowait())
        return self._collector.output(0)

    def __del__(self) -> None:
        if hasattr(self, "_submitted"):
            self._worker.cancel(self._submitted)

    def _is_open(self) -> bool:
        """Return whether tokens are missing; raise what ended the request before its last one."""
        if self._ended is not None:
            raise self._ended
        return not self.finished

    async def _take(self) -> None:
        try:
            update = await self._arrived.next()
        except BaseException:  # the task is cancelled
            self.abort()
            raise
        self._add(update)

    def _add(self, update: OutputUpdate) -> None:
        try:
            with in_python():
                self._collector.add(update)
        except Exception as error:
            self._ended = error
            self.abort()
            raise


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
