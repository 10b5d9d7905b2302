"""What a session knows of the other ranks that have the same session open: nothing, where there are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from opt_trt.runtime.world.communicator import Communicator

INDEX_BYTES = 8  # in front of every message: the session it is for


class Ranks(Protocol):
    """The ranks of a session: this one, and those it meets in every step."""

    rank: int
    local_size: int  # ranks on this host, which share its memory
    step_timeout: float  # seconds after which a rank that waits for another one gives up

    def fewest(self, count: int) -> int:
        """The least of what all ranks have; every rank asks once, while the session is opened."""
        ...

    def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
        """Where this rank does what the message tells the others to do, too; a world of one needs no message."""
        ...

    def close(self) -> None:
        """There will be no more steps: others may free what they have; waits for nobody, and twice is as once."""
        ...


class Alone:
    """`Ranks` of a world of one."""

    rank = 0
    local_size = 1
    step_timeout = math.inf

    def fewest(self, count: int) -> int:
        """What this rank has."""
        return count

    def step(self, message: Callable[[], bytes]) -> AbstractContextManager[None]:
        """Nobody is to be told."""
        return nullcontext()

    def close(self) -> None:
        """Nobody is to be told."""


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
        """The leader tells the others; they are told already when they come here."""
        if not self._communicator.world.is_leader:
            yield
            return
        with self._communicator.section():
            self._communicator.send(index_bytes(self._index) + message())
            yield

    def close(self) -> None:
        """See `Ranks.close`: a message without a plan, of the leader's."""
        if self._communicator.world.is_leader and not self._is_closed:
            self._is_closed = True
            self._communicator.send_soon(index_bytes(self._index))


def index_bytes(index: int) -> bytes:
    """How a message begins."""
    return index.to_bytes(INDEX_BYTES, "little", signed=True)
