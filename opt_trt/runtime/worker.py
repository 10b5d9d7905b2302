"""A session in a thread of its own: callers in any thread submit requests, which are batched in flight."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Protocol

from opt_trt.errors import UserError
from opt_trt.runtime.executor import CLOSED
from opt_trt.runtime.request import Request
from opt_trt.runtime.sequence import TokenSequence
from opt_trt.runtime.session import Session

FORKED = "this process is a fork of the one that opened the engine, whose thread is not here: open the engine here, too"


class Listener(Protocol):
    """The receiver of a request's tokens. It is called in the worker's thread, so it must not wait for anything.

    A listener that raises RuntimeError, as a closed event loop does, no longer listens: its request is cancelled.
    """

    whole: bool  # it waits for whole outputs, so an engine need not deliver every token separately

    def advanced(self, sequence: TokenSequence) -> None:
        """Note one more token, which is the last one if there is a finish reason; the sequence goes on changing."""
        ...

    def failed(self, error: Exception) -> None:
        """Note that no more tokens will come."""
        ...


@dataclass(eq=False)
class Submitted:
    """A submitted request."""

    sequence: TokenSequence
    listener: Listener


class Worker:
    """A thread that steps a session as long as there are requests, and sleeps otherwise; it must be closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commands: SimpleQueue[Callable[[ActiveRequests], None] | None] = SimpleQueue()
        self._closing = Lock()  # every accepted request is in the queue before the command to stop
        self._closed = False
        self._process = os.getpid()
        self._thread = Thread(target=self._run, name="opt_trt worker", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[tuple[Request, Listener]]) -> list[Submitted]:
        """Let the checked requests of one caller join the next step together."""
        caller = object()
        submitted = [
            Submitted(TokenSequence(index, request, is_watched=not listener.whole, caller=caller), listener)
            for index, (request, listener) in enumerate(requests)
        ]
        if os.getpid() != self._process:
            raise UserError(FORKED)
        with self._closing:
            if self._closed:
                raise UserError(CLOSED)
            self._commands.put(lambda active: active.join(submitted))
        return submitted

    def cancel(self, submitted: Sequence[Submitted]) -> None:
        """Drop those requests that are not finished, before the next step."""
        self._commands.put(lambda active: active.leave(submitted))

    def close(self) -> None:
        """Fail the requests in flight, end the thread and wait until it has ended; closing twice does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._commands.put(None)
        if current_thread() is not self._thread:  # the garbage collector may call this anywhere
            self._thread.join()

    def _run(self) -> None:
        active = ActiveRequests(self._session)
        try:
            while self._obey(active):
                active.step()
        finally:
            with self._closing:
                self._closed = True
            while not self._commands.empty():  # whatever went wrong here, no caller may wait for ever
                if command := self._commands.get():
                    command(active)
            active.close(UserError(CLOSED))

    def _obey(self, active: ActiveRequests) -> bool:
        """Run the commands given since the last step, and wait if there is nothing to step; return False at the end."""
        while True:
            try:
                command = self._commands.get(block=not active.has_work)
            except Empty:
                return True
            if command is None:
                return False
            command(active)


class ActiveRequests:
    """The requests in flight; only the worker's thread uses them."""

    def __init__(self, session: Session) -> None:
        self._in_flight = session.in_flight
        self._listeners: dict[TokenSequence, Listener] = {}

    @property
    def has_work(self) -> bool:
        """True if any request is not finished."""
        return bool(self._listeners)

    def join(self, submitted: Sequence[Submitted]) -> None:
        """Add requests to those in flight."""
        for one in submitted:
            self._listeners[one.sequence] = one.listener
            self._in_flight.submit(one.sequence)

    def leave(self, submitted: Sequence[Submitted]) -> None:
        """Drop requests whose tokens are no longer wanted; finished ones are gone already."""
        for one in submitted:
            self._drop(one.sequence)

    def step(self) -> None:
        """Compute one token for each running request; an error that ends all steps fails all requests in flight."""
        try:
            stepped = self._in_flight.step()
        except Exception as error:
            self.close(error)
        else:
            for sequence in stepped:
                self._tell(sequence)

    def close(self, error: Exception) -> None:
        """Fail all requests in flight."""
        for sequence, listener in list(self._listeners.items()):
            self._drop(sequence)
            _fail(listener, error)

    def _drop(self, sequence: TokenSequence) -> None:
        if self._listeners.pop(sequence, None) is not None:
            self._in_flight.cancel(sequence)

    def _tell(self, sequence: TokenSequence) -> None:
        listener = self._listeners.get(sequence)
        if listener is None:  # cancelled
            return
        if sequence.finish_reason is not None:
            del self._listeners[sequence]
        if isinstance(sequence.error, Exception):
            _fail(listener, sequence.error)
            return
        try:
            listener.advanced(sequence)
        except RuntimeError:
            self._drop(sequence)


def _fail(listener: Listener, error: Exception) -> None:
    with suppress(RuntimeError):
        listener.failed(error)
