"""Stop words end a sequence before its length: ids anywhere in its new tokens, or strings in their text.

This module knows no tokenizer: stop words that are strings bring a function that turns ids into text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from opt_trt.errors import UserError


class TextPieces(Protocol):
    """The text of one sequence, piece by piece."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and will not change."""
        ...


@dataclass(frozen=True)
class StopWords:
    """Words that end a sequence, beside its end id, when they appear in the new tokens.

    A string may begin and end inside a token; `open_text` starts the text in which strings are searched. `spellings`
    are the ids that a tokenizer has for the strings. An engine that looks for ids only stops at these at once, and at
    other spellings after the output is complete.
    """

    ids: tuple[tuple[int, ...], ...] = ()
    strings: tuple[str, ...] = ()
    open_text: Callable[[], TextPieces] | None = None
    spellings: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if () in self.ids or "" in self.strings:
            raise UserError("an empty stop word would end every output at once; drop it")
        if self.strings and self.open_text is None:
            raise UserError(f"the stop word {self.strings[0]!r} is text: give a tokenizer, or its token ids")

    @property
    def longest_string(self) -> int:
        """The number of characters of the longest string, 0 if there is none."""
        return max(map(len, self.strings), default=0)


@dataclass(frozen=True)
class Stop:
    """The stop word that ended a sequence: the last ids of the output, or a string at `text_end` of its text."""

    word: str | tuple[int, ...]
    text_end: int | None = None  # characters of the output's text before the string


class StopWatch:
    """A watch over the new tokens of one sequence, until one completes a stop word."""

    def __init__(self, words: StopWords, min_length: int) -> None:
        self._words = words
        self._min_length = min_length
        self._text = words.open_text() if words.strings and words.open_text else None
        self._tail = ""  # the end of the text so far, in which a string may have begun
        self._tail_start = 0

    def look(self, output_ids: Sequence[int]) -> Stop | None:
        """Return the stop word that the newest token completes. Call this once per token."""
        by_string = self._push(output_ids[-1])
        if len(output_ids) <= self._min_length:
            return None
        ends = (word for word in self._words.ids if tuple(output_ids[-len(word) :]) == word)
        by_ids = max(ends, key=len, default=None)
        return by_string or (Stop(by_ids) if by_ids else None)

    def _push(self, token_id: int) -> Stop | None:
        """Return the string that the token's text completes: the first to begin, and of these the longest."""
        if self._text is None:
            return None
        before = len(self._tail)
        window = self._tail + self._text.push((token_id,))
        found = []
        for word in self._words.strings:
            start = window.find(word, max(0, before + 1 - len(word)))
            if start >= 0:
                found.append((start, -len(word), word))
        stop = Stop(min(found)[2], self._tail_start + min(found)[0]) if found else None
        cut = max(0, len(window) + 1 - self._words.longest_string)
        self._tail, self._tail_start = window[cut:], self._tail_start + cut
        return stop
