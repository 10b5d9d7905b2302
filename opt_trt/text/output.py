"""Turn the ids of one output into text, whole or as they come."""

from __future__ import annotations

from collections.abc import Sequence

from opt_trt.runtime.request import Result
from opt_trt.runtime.stopping import Stop, StopWords
from opt_trt.text.tokenizer import Decodes

HALF_CHARACTER = "\ufffd"  # the bytes of an unfinished UTF-8 character decode to this


class Detokenizer:
    """The text of ids that come one by one; part of a UTF-8 character is held back until it is whole."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and whole."""
        self._held += ids
        text = self._tokenizer.decode(self._held)
        if not text.endswith(HALF_CHARACTER):
            self._held.clear()
            return text
        for kept in range(1, len(self._held)):
            whole, rest = self._tokenizer.decode(self._held[:-kept]), self._tokenizer.decode(self._held[-kept:])
            if rest and whole + rest == text:  # a cut inside a character decodes to replacement characters
                del self._held[:-kept]
                return whole
        return ""

    def flush(self) -> str:
        """Return the rest, at the end of the sequence."""
        text = self._tokenizer.decode(self._held)
        self._held.clear()
        return text


class OutputText:
    """The text of one output while its tokens come, as far as it can no longer change.

    Part of a character is held back, and so is text that may be the beginning of a stop word, if there are any.
    """

    def __init__(self, tokenizer: Decodes, words: StopWords | None) -> None:
        self._pieces = Detokenizer(tokenizer)
        self._withheld = 0 if words is None else max(0, words.longest_string - 1)
        self._waiting = ""
        self._given = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and certain."""
        self._waiting += self._pieces.push(ids)
        return self._give(len(self._waiting) - self._withheld)

    def finish(self, ids: Sequence[int], stop: Stop | None) -> str:
        """Take the last ids, also the one that completes a stop word; return the rest of the text up to that word."""
        self._waiting += self._pieces.push(ids) + self._pieces.flush()
        text_end = None if stop is None else stop.text_end
        return self._give(len(self._waiting) if text_end is None else text_end - self._given)

    def _give(self, size: int) -> str:
        given = self._waiting[: max(0, size)]
        self._waiting = self._waiting[len(given) :]
        self._given += len(given)
        return given


def readable(result: Result, text: Decodes) -> str:
    """Return the text of an output without the end id or stop word that ended it."""
    if result.stop is not None and result.stop.text_end is not None:
        return text.decode(result.output_ids)[: result.stop.text_end]
    ending = 1 if result.finish_reason == "end_id" else len(result.stop.word) if result.stop else 0
    return text.decode(result.output_ids[: len(result.output_ids) - ending])
