"""A session in a thread of its own: callers in any thread submit requests, which are batched in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Protocol

from opt_trt.errors import UserError
from opt_trt.runtime.request import Request, RequestFailed
from opt_trt.runtime.scheduler import TokenSequence
from opt_trt.runtime.session import Session

CLOSED = "the engine is closed: open it again"


class Listener(Protocol):
    """Who waits for the tokens of a request. Called in the worker's thread, so that it must not wait for anything.

    One that raises RuntimeError, as a closed event loop does, no longer listens: its request is cancelled.
    """

    def advanced(self, sequence: TokenSequence) -> None:
        """There is one more token, the last one if there is a finish reason; the sequence goes on changing."""
        ...

    def failed(self, error: Exception) -> None:
        """No more tokens will come."""
        ...


@dataclass(eq=False)
class Ticket:
    """A submitted request."""

    number: int  # no other request of the worker has it
    request: Request
    listener: Listener
    told: int = 0  # tokens the listener knows of


class Worker:
    """Steps a session for as long as there are requests, and sleeps otherwise; it must be closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._numbers = count()
        self._commands: SimpleQueue[Callable[[Flights], None] | None] = SimpleQueue()
        self._closing = Lock()  # whoever gets a ticket is in the queue before the command to stop
        self._closed = False
        self._thread = Thread(target=self._run, name="opt_trt worker", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[tuple[Request, Listener]]) -> list[Ticket]:
        """Let checked requests join the next step together."""
        tickets = [Ticket(next(self._numbers), request, listener) for request, listener in requests]
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
        while self._obey(flights):
            flights.step()
        flights.close()

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
        self._session = session
        self._generation = session.begin()
        self._tickets: dict[int, Ticket] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._tickets)

    def join(self, tickets: Sequence[Ticket]) -> None:
        """Take requests on."""
        for ticket in tickets:
            self._tickets[ticket.number] = ticket
            self._generation.submit(ticket.number, ticket.request)

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Drop requests that nobody waits for; finished ones are gone already."""
        for ticket in tickets:
            if self._tickets.pop(ticket.number, None) is not None:
                self._generation.cancel(ticket.number)

    def step(self) -> None:
        """One token for each that runs. What fails is told to who asked for it, or to all if no one is to blame."""
        try:
            stepped = self._generation.step()
        except RequestFailed as error:
            self._fail([t for t in self._tickets.values() if t.number == error.index], error)
            self._start_again()
        except Exception as error:
            self._fail(list(self._tickets.values()), error)
            self._start_again()
        else:
            for sequence in stepped:
                self._tell(sequence)

    def close(self) -> None:
        """Fail whatever is in flight."""
        self._fail(list(self._tickets.values()), UserError(CLOSED))
        self._generation.close()

    def _tell(self, sequence: TokenSequence) -> None:
        ticket = self._tickets.get(sequence.index)
        if ticket is None or len(sequence.output_ids) <= ticket.told:
            return
        ticket.told += 1
        if sequence.finish_reason is not None:
            del self._tickets[sequence.index]
        try:
            ticket.listener.advanced(sequence)
        except RuntimeError:
            self.leave([ticket])

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        for ticket in tickets:
            del self._tickets[ticket.number]
            with suppress(RuntimeError):
                ticket.listener.failed(error)

    def _start_again(self) -> None:
        """A failed step leaves its generation in no state to go on: generate again what is left in flight.

        A request has the same tokens whatever runs beside it, so nobody is told twice.
        """
        self._generation.close()
        self._generation = self._session.begin()
        self.join(list(self._tickets.values()))
