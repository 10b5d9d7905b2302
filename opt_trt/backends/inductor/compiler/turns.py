"""Who has a turn while several threads compile: Inductor's own code is one thread's, compilers run side by side.

Most of a program's time is its compiler's, a process of its own, while Inductor's code was written for one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Condition, Lock, get_ident


class Turns:
    """The turns of the threads that compile, and of the one that measures: it needs the machine to itself."""

    def __init__(self) -> None:
        self._code = Lock()  # held by the thread whose turn it is
        self._owner: int | None = None
        self._compilers = Condition()
        self._running = 0
        self._are_held = self._are_over = False

    @contextmanager
    def own_code(self) -> Iterator[None]:
        """Inductor's code, until nobody else is in it."""
        with self._code:
            self._owner = get_ident()
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def compiler(self) -> Iterator[None]:
        """A compiler that own code starts and waits for: meanwhile it is another thread's turn.

        `CancelledError` when there are to be no more. A thread that has no turn just goes on: it is nobody's of ours.
        """
        if self._owner != get_ident():
            yield
            return
        self._owner = None
        self._code.release()
        try:
            self._begin()
            try:
                yield
            finally:
                self._end()
        finally:
            self._code.acquire()
            self._owner = get_ident()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing of all that runs: begins when what runs has come to its end."""
        try:
            with self._compilers:
                self._are_held = True
                self._compilers.wait_for(lambda: self._running == 0)
            with self._code:
                yield
        finally:
            with self._compilers:
                self._are_held = False
                self._compilers.notify_all()

    def end(self) -> None:
        """No compiler starts any more: who waits for one gives up."""
        with self._compilers:
            self._are_over = True
            self._compilers.notify_all()

    def _begin(self) -> None:
        with self._compilers:
            self._compilers.wait_for(lambda: self._are_over or not self._are_held)
            if self._are_over:
                raise CancelledError
            self._running += 1

    def _end(self) -> None:
        with self._compilers:
            self._running -= 1
            self._compilers.notify_all()
