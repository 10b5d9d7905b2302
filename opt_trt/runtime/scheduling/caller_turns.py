"""The sequences that wait for a place: callers take turns, and the sequences of one caller keep their order."""

from __future__ import annotations

from collections.abc import Iterator

from opt_trt.runtime.sequence import TokenSequence


class WaitingQueue:
    """A queue from which callers are served in turn, so that one with thousands of sequences holds up no other.

    Sequences that start over come before all others. To find, take and drop a sequence takes the same time however
    many wait.
    """

    def __init__(self) -> None:
        self._starting_over: dict[TokenSequence, None] = {}  # first comes last: the newest of all is the first to go on
        self._callers: dict[object, dict[TokenSequence, None]] = {}  # in the order of their turns

    def __bool__(self) -> bool:
        return bool(self._starting_over or self._callers)

    def __iter__(self) -> Iterator[TokenSequence]:
        yield from reversed(self._starting_over)
        for sequences in self._callers.values():
            yield from sequences

    def append(self, sequence: TokenSequence) -> None:
        """Add a sequence behind those of its caller."""
        self._callers.setdefault(sequence.caller, {})[sequence] = None

    def start_over(self, sequence: TokenSequence) -> None:
        """Add a sequence before all others."""
        self._starting_over[sequence] = None

    @property
    def first(self) -> TokenSequence:
        """The sequence whose turn it is."""
        return next(iter(self))

    def take(self) -> TokenSequence:
        """Remove and return the first sequence; its caller's next turn comes behind those of all others."""
        if self._starting_over:
            return self._starting_over.popitem()[0]
        sequence = self.first
        others = self._callers.pop(sequence.caller)
        del others[sequence]
        if others:
            self._callers[sequence.caller] = others
        return sequence

    def drop(self, sequence: TokenSequence) -> None:
        """Remove a sequence, if it waits."""
        self._starting_over.pop(sequence, None)
        others = self._callers.get(sequence.caller, {})
        others.pop(sequence, None)
        if not others:
            self._callers.pop(sequence.caller, None)

    def clear(self) -> None:
        """Remove all sequences."""
        self._starting_over.clear()
        self._callers.clear()
