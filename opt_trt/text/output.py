"""Turn the ids of one output into text, whole or as they come."""

from __future__ import annotations

from collections.abc import Sequence

from opt_trt.runtime.request import Result
from opt_trt.runtime.stopping import Stop, StopWords
from opt_trt.runtime.text_search import HALF_CHARACTER
from opt_trt.text.tokenizer import Decodes

CONTEXT = 4  # ids kept from before: by these, decoders know whether a space belongs in front of the next one


class Detokenizer:
    """The text of ids that come one by one. The pieces add up to the text that the tokenizer has for all ids.

    Text that further ids may change is held back: part of a UTF-8 character, and a run of single bytes.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # some of before, then those whose text is not complete
        self._given = 0  # characters of their text that were returned
        self.pending = ""  # what is held back, as it would be if no more ids came

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and will not change."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids)
        end = max(self._given, self._settled_length(text))
        new, self.pending, self._given = text[self._given : end], text[end:], end
        if not self.pending:
            self._forget()
        return new

    def flush(self) -> str:
        """Return the rest, at the end of the sequence."""
        rest, self.pending = self.pending, ""
        return rest

    def _settled_length(self, text: str) -> int:
        settled = self._tokenizer.num_settled(self._ids)
        whole = text if settled == len(self._ids) else self._tokenizer.decode(self._ids[:settled])
        return len(whole) - whole.endswith(HALF_CHARACTER)

    def _forget(self) -> None:
        """Drop ids of before, as long as those that are kept have a text: its beginning may be decoded specially."""
        if len(self._ids) > 2 * CONTEXT and (text := self._tokenizer.decode(self._ids[-CONTEXT:])):
            self._ids, self._given = self._ids[-CONTEXT:], len(text)


class OutputText:
    """The text of one output while its tokens come, as far as it can no longer change.

    What a `Detokenizer` holds back is, and so is the end of the text if a stop word may begin with it.
    """

    def __init__(self, tokenizer: Decodes, words: StopWords | None) -> None:
        self._pieces = Detokenizer(tokenizer)
        self._words = words
        self._waiting = ""
        self._given = 0

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that is new and certain."""
        self._waiting += self._pieces.push(ids)
        withheld = 0 if self._words is None else self._words.begun(self._waiting)
        return self._give(len(self._waiting) - withheld)

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
