"""The random numbers of a sequence; those that come next can be looked at before they are used."""

from __future__ import annotations

from collections import deque
from random import Random


class RandomNumbers:
    """Numbers from `[0, 1)` that depend on the seed alone: who looks ahead changes none of them."""

    def __init__(self, seed: str) -> None:
        self._generator = Random(seed)
        self._seen: deque[float] = deque()

    def random(self) -> float:
        """The next one, which is used up."""
        return self._seen.popleft() if self._seen else self._generator.random()

    def coming(self, count: int) -> tuple[float, ...]:
        """The next ones, which stay."""
        while len(self._seen) < count:
            self._seen.append(self._generator.random())
        return tuple(self._seen)[:count]
