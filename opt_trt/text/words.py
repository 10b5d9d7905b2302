"""Turn words of text into what ends or bans them: stop words and bad words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from opt_trt.errors import UserError
from opt_trt.runtime.stopping import SpecialWords, StopWords
from opt_trt.text.output import Detokenizer
from opt_trt.text.tokenizer import Tokenizer

Ids = tuple[int, ...]


def stop_words(words: Sequence[str], tokenizer: Tokenizer, ids: Sequence[Ids] = ()) -> StopWords | None:
    """Return what ends an output: words in its text, special tokens that its text leaves out, and ids; None for none.

    `tokenizer` is the one that decodes the output.
    """
    if not (words or ids):
        return None
    special, whole = tuple(filter(tokenizer.hides, words)), tokenizer.verbatim()
    return StopWords(
        tuple(ids),
        tuple(words),
        partial(Detokenizer, tokenizer),
        tuple(spelling for word in words if word in whole.decode(spelling := tokenizer.encode_word(word))),
        SpecialWords(special, partial(Detokenizer, whole), tokenizer.hide) if special else None,
    )


def banned_ids(words: Sequence[str], tokenizer: Tokenizer) -> tuple[Ids, ...]:
    """Return the ids of words, each as it is written."""
    return tuple(tokenizer.encode_word(word) for word in words)


def banned_with_and_without_space(words: Sequence[str], tokenizer: Tokenizer) -> tuple[Ids, ...]:
    """Return the ids of words as they are written, without a space before them, and with one, each of these once."""
    if "" in words:
        raise UserError("bad_words has a word without tokens; drop it")
    spellings = [spelling for word in words for spelling in (word, word.lstrip(), f" {word.lstrip()}")]
    return tuple(dict.fromkeys(filter(None, map(tokenizer.encode_word, spellings))))
