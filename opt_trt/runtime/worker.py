"""A session in a thread of its own: callers in any thread submit requests, which are batched in flight."""

from __future__ import annotations

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


class Listener(Protocol):
    """Who waits for the tokens of a request. Called in the worker's thread, so that it must not wait for anything.

    One that raises RuntimeError, as a closed event loop does, no longer listens: its request is cancelled.
    """

    whole: bool  # it waits for whole outputs; an engine may then take less trouble over every token

    def advanced(self, sequence: TokenSequence) -> None:
        """There is one more token, the last one if there is a finish reason; the sequence goes on changing."""
        ...

    def failed(self, error: Exception) -> None:
        """No more tokens will come."""
        ...


@dataclass(eq=False)
class Ticket:
    """A submitted request."""

    sequence: TokenSequence
    listener: Listener


class Worker:
    """Steps a session for as long as there are requests, and sleeps otherwise; it must be closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commands: SimpleQueue[Callable[[Flights], None] | None] = SimpleQueue()
        self._closing = Lock()  # whoever gets a ticket is in the queue before the command to stop
        self._closed = False
        self._thread = Thread(target=self._run, name="opt_trt worker", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[tuple[Request, Listener]]) -> list[Ticket]:
        """Let checked requests join the next step together."""
        tickets = [
            Ticket(TokenSequence(index, request, is_watched=not who.whole), who)
            for index, (request, who) in enumerate(requests)
        ]
        with self._closing:
            if self._closed:
                raise UserError(CLOSED)
            self._commands.put(lambda flights: flights.join(tickets))
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drop those requests that are not finished, before the next step."""
        self._commands.put(lambda flights: flights.leave(tickets))

    def close(self) -> None:
        """Fail what is in flight, end the thread and wait until it has ended; closing twice does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._commands.put(None)
        if current_thread() is not self._thread:  # the garbage collector may call this anywhere
            self._thread.join()

    def _run(self) -> None:
        flights = Flights(self._session)
        try:
            while self._obey(flights):
                flights.step()
        finally:
            with self._closing:
                self._closed = True
            while not self._commands.empty():  # whatever went wrong here, nobody waits for ever
                if command := self._commands.get():
                    command(flights)
            flights.close(UserError(CLOSED))

    def _obey(self, flights: Flights) -> bool:
        """Do what was asked for since the last step, or wait if there is nothing to step; False is the end."""
        while True:
            try:
                command = self._commands.get(block=not flights.has_work)
            except Empty:
                return True
            if command is None:
                return False
            command(flights)


class Flights:
    """The requests in flight; known to the worker's thread alone."""

    def __init__(self, session: Session) -> None:
        self._generation = session.generation
        self._listeners: dict[TokenSequence, Listener] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._listeners)

    def join(self, tickets: Sequence[Ticket]) -> None:
        """Take requests on."""
        for ticket in tickets:
            self._listeners[ticket.sequence] = ticket.listener
            self._generation.submit(ticket.sequence)

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Drop requests that nobody waits for; finished ones are gone already."""
        for ticket in tickets:
            self._drop(ticket.sequence)

    def step(self) -> None:
        """One token for each that runs; if no request is to blame for a failure, all of them fail."""
        try:
            stepped = self._generation.step()
        except Exception as error:
            self.close(error)
        else:
            for sequence in stepped:
                self._tell(sequence)

    def close(self, error: Exception) -> None:
        """Fail whatever is in flight."""
        for sequence, listener in list(self._listeners.items()):
            self._drop(sequence)
            _fail(listener, error)

    def _drop(self, sequence: TokenSequence) -> None:
        if self._listeners.pop(sequence, None) is not None:
            self._generation.cancel(sequence)

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
