"""Order the threads that compile: one thread at a time runs Inductor's own code, compilers run in parallel.

Inductor's code was written for one thread. Most of a program's time passes in its compiler, which is another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Condition, Lock, get_ident


class Turns:
    """The turns of threads that compile, and of the thread that measures, which needs the machine for itself."""

    def __init__(self) -> None:
        self._code = Lock()  # the thread that runs Inductor's code holds it
        self._owner: int | None = None
        self._compilers = Condition()
        self._running = 0
        self._are_held = self._are_over = False

    @contextmanager
    def own_code(self) -> Iterator[None]:
        """Wait for Inductor's code, and run it alone."""
        with self._code:
            self._owner = get_ident()
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def compiler(self) -> Iterator[None]:
        """Run a compiler that own code has started; meanwhile another thread may run Inductor's code.

        `CancelledError` after `end`. A thread that has no turn goes on at once: it is not one of our threads.
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
        """Wait until running compilers and code have finished, and start none meanwhile."""
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
        """Start no more compilers: threads that wait for one get `CancelledError`."""
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
