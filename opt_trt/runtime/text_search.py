"""Search strings in a text that grows token by token, and whose end may still change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

HALF_CHARACTER = "\ufffd"  # the bytes of an unfinished UTF-8 character decode to this


class TextPieces(Protocol):
    """The text of one sequence, piece by piece."""

    pending: str  # the text of all ids so far ends with this, which may still change

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and will not change."""
        ...


@dataclass(frozen=True)
class Found:
    """A string in a text: where it begins, and the text from there to the newest token's end."""

    word: str
    start: int
    text: str


class Search:
    """A search for strings in a text that grows token by token; each place is looked at once, or when it changes."""

    def __init__(self, strings: Sequence[str], pieces: TextPieces) -> None:
        self._strings = strings
        self._pieces = pieces
        self._longest = max(map(len, strings))
        self._tail = ""  # the end of the certain text, in which a string may have begun
        self._tail_start = 0
        self._searched = ""  # the text from there on in which no string was found, or too early
        self.length = 0  # characters of the text of all tokens so far

    def push(self, token_id: int, is_last: bool) -> Found | None:
        """Return the string that the token's text completes: the first to begin, and of these the longest.

        Half a character is none, unless the token is the last one.
        """
        certain, pending = self._tail + self._pieces.push((token_id,)), self._pieces.pending
        self.length = self._tail_start + len(certain) + len(pending)
        window = certain + (pending if is_last else pending.rstrip(HALF_CHARACTER))
        before = agreement(self._searched, window)  # what is pending may change without growing
        starts = ((window.find(word, max(0, before + 1 - len(word))), -len(word), word) for word in self._strings)
        first = min((place for place in starts if place[0] >= 0), default=None)
        found = None if first is None else Found(first[2], self._tail_start + first[0], window[first[0] :])
        cut = max(0, len(certain) + 1 - self._longest)
        self._tail, self._tail_start, self._searched = certain[cut:], self._tail_start + cut, window[cut:]
        return found


def agreement(before: str, now: str) -> int:
    """Return the number of characters with which both texts begin."""
    if now.startswith(before):
        return len(before)
    return next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), len(now))


def overlap(text: str, beginning: str) -> int:
    """Return the length of the longest end of `text` that `beginning` begins with."""
    start = max(0, len(text) - len(beginning))
    while beginning and (start := text.find(beginning[0], start)) >= 0:
        if beginning.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
