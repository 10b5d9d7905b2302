"""Stop words end a sequence before its length: ids anywhere in its new tokens, or strings in their text.

This module knows no tokenizer: stop words that are strings bring functions that turn ids into text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from opt_trt.errors import UserError
from opt_trt.runtime.text_search import Search, TextPieces, overlap

OpenText = Callable[[], TextPieces]


@dataclass(frozen=True)
class SpecialWords:
    """Strings that name special tokens, which the text of an output leaves out; they are looked for in the whole text.

    `open_text` starts a text with special tokens, and `hide` removes these from a piece of it.
    """

    strings: tuple[str, ...]
    open_text: OpenText
    hide: Callable[[str], str]


@dataclass(frozen=True)
class StopWords:
    """Words that end a sequence, beside its end id, when they appear in the new tokens.

    A string may begin and end inside a token; `open_text` starts the text in which strings are searched. `spellings`
    are the ids that a tokenizer has for the strings. An engine that looks for ids only stops at these at once, and at
    other spellings after the output is complete. Those of the strings that name special tokens are in `special`, too.
    """

    ids: tuple[tuple[int, ...], ...] = ()
    strings: tuple[str, ...] = ()
    open_text: OpenText | None = None
    spellings: tuple[tuple[int, ...], ...] = ()
    special: SpecialWords | None = None

    def __post_init__(self) -> None:
        if () in self.ids or "" in self.strings:
            raise UserError("an empty stop word would end every output at once; drop it")
        if self.strings and self.open_text is None:
            raise UserError(f"the stop word {self.strings[0]!r} is text: give a tokenizer, or its token ids")

    @cached_property
    def beginnings(self) -> tuple[str, ...]:
        """The longest texts that may be the beginning of a stop word that is not complete."""
        special = () if self.special is None else map(self.special.hide, self.special.strings)
        return (*(word[:-1] for word in self.strings), *special)

    def begun(self, text: str) -> int:
        """Return the length of the longest end of the text with which a stop word may begin."""
        return max((overlap(text, beginning) for beginning in self.beginnings), default=0)


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
        special = words.special
        self._text = Search(words.strings, words.open_text()) if words.strings and words.open_text else None
        self._verbatim = None if special is None else Search(special.strings, special.open_text())

    def look(self, output_ids: Sequence[int], is_last: bool = False) -> Stop | None:
        """Return the stop word that the newest token completes. Call this once per token."""
        by_string = self._push(output_ids[-1], is_last)
        if len(output_ids) <= self._min_length:
            return None
        ends = (word for word in self._words.ids if tuple(output_ids[-len(word) :]) == word)
        by_ids = max(ends, key=len, default=None)
        return by_string or (Stop(by_ids) if by_ids else None)

    def _push(self, token_id: int, is_last: bool) -> Stop | None:
        """Return the string that the token's text completes: the first to begin, and of these the longest."""
        if self._text is None:
            return None
        seen = self._text.push(token_id, is_last)
        special = self._verbatim.push(token_id, is_last) if self._verbatim else None
        if seen is not None:
            return Stop(seen.word, seen.start)
        if special is None:
            return None
        assert self._words.special is not None
        return Stop(special.word, self._text.length - len(self._words.special.hide(special.text)))
