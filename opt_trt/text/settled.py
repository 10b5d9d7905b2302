"""Which ids have their final text: what the last ids decode to may depend on the ids behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
JOINERS = ("Fuse", "ByteLevel")  # decoders that make one text of all tokens
# Decoders that change characters by their neighbours. Behind a joiner, these may be characters of another token.
EDITORS = ("Replace", "WordPiece", "CTC", "ByteFallback")


class FastTokenizer(Protocol):
    """The part of a `tokenizers.Tokenizer` that is needed here."""

    decoder: Any

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Return the id of each token."""
        ...


@dataclass(frozen=True)
class Settling:
    """The rule by which a tokenizer's decoder makes text of ids.

    Tokens of single bytes become characters as a whole run. One byte that does not fit makes all of the run invalid.
    """

    byte_ids: frozenset[int] = frozenset()  # single bytes that are decoded as runs
    shown_ids: frozenset[int] = frozenset()  # all ids that have a text; the others do not end a run
    at_end_only: bool = False  # any id may change any text before it

    def count(self, ids: Sequence[int]) -> int:
        """Return how many of the ids have a text that no further ids can change, half characters aside."""
        if self.at_end_only:
            return 0
        settled = len(ids)
        if not self.byte_ids:
            return settled
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] in self.byte_ids:
                settled = position
            elif ids[position] in self.shown_ids:
                break
        return settled


def settling_of(tokenizer: FastTokenizer | None, hidden_ids: frozenset[int]) -> Settling:
    """Return the rule of a fast tokenizer; `hidden_ids` are left out of its text. None has an unknown rule."""
    if tokenizer is None:
        return Settling(at_end_only=True)
    steps = _steps(tokenizer.decoder)
    joined = next((i for i, step in enumerate(steps) if step["type"] in JOINERS), len(steps))
    if any(map(_edits_neighbours, steps[joined:])):
        return Settling(at_end_only=True)
    if not any(step["type"] == "ByteFallback" for step in steps):
        return Settling()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    byte_ids = frozenset(i for token, i in vocabulary.items() if BYTE_TOKEN.fullmatch(token)) - hidden_ids
    return Settling(byte_ids, frozenset(vocabulary.values()) - hidden_ids)


def _steps(decoder: Any) -> list[Mapping[str, Any]]:
    """Return the settings of a decoder's parts, in the order in which they are applied."""
    return [] if decoder is None else _flat(json.loads(decoder.__getstate__()))


def _flat(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if settings["type"] != "Sequence":
        return [settings]
    return [step for inner in settings["decoders"] for step in _flat(inner)]


def _edits_neighbours(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Replace":  # a single character has no neighbours
        return len(step["pattern"].get("String", "  ")) > 1
    return step["type"] in EDITORS
