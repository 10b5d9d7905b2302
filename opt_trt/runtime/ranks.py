"""The connection of a session to the other ranks that have the same session open, if there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from opt_trt.runtime.world.communicator import Communicator

INDEX_BYTES = 8  # the number of the session, in front of every message


class Ranks(Protocol):
    """The ranks of a session, as one of them sees the others."""

    rank: int
    local_size: int  # ranks on this host, which share its memory
    step_timeout: float  # seconds after which a rank that waits for another one gives up

    def fewest(self, count: int) -> int:
        """Return the smallest count over all ranks. Every rank calls this once, while the session is opened."""
        ...

    def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
        """Return a context in which all ranks do what the message says. A world of one builds no message."""
        ...

    def close(self) -> None:
        """End the steps: other ranks free their session. This does not wait. Calling it again does nothing."""
        ...


class Alone:
    """`Ranks` of a world of one."""

    rank = 0
    local_size = 1
    step_timeout = math.inf

    def fewest(self, count: int) -> int:
        """Return the count of this rank."""
        return count

    def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
        """Return a context that does nothing: there are no other ranks."""
        return nullcontext()

    def close(self) -> None:
        """Do nothing: there are no other ranks."""


ALONE = Alone()


class SessionRanks:
    """`Ranks` of the session that was opened after `index` others in this world."""

    def __init__(self, communicator: Communicator, index: int) -> None:
        self._communicator = communicator
        self._index = index
        self._is_closed = False
        self.rank = communicator.world.rank
        self.local_size = communicator.world.local_size
        self.step_timeout = communicator.step_timeout or math.inf

    def fewest(self, count: int) -> int:
        """See `Ranks.fewest`."""
        return self._communicator.minimum(count)

    @contextmanager
    def step(self, message: Callable[[], bytes]) -> Iterator[None]:
        """Send the message on the leader. The other ranks have received it when they come here."""
        if not self._communicator.world.is_leader:
            yield
            return
        with self._communicator.section():
            self._communicator.send(index_bytes(self._index) + message())
            yield

    def close(self) -> None:
        """See `Ranks.close`. The leader sends a message without a plan."""
        if self._communicator.world.is_leader and not self._is_closed:
            self._is_closed = True
            self._communicator.send_soon(index_bytes(self._index))


def index_bytes(index: int) -> bytes:
    """Return the beginning of a message for a session."""
    return index.to_bytes(INDEX_BYTES, "little", signed=True)
