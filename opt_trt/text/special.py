"""The special tokens of a tokenizer: which there are, and which transformers made up."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The files that may name special tokens which are not in the vocabulary.
NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that decoded texts may leave out: their ids, and a pattern that finds their names in a text."""

    ids: frozenset[int]
    named: re.Pattern[str]


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Return the special tokens of a tokenizer of transformers."""
    found = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted(found.values(), key=len, reverse=True)
    named = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")  # the latter matches nothing
    return SpecialTokens(frozenset(found), named)


def forget_invented(tokenizer: Any, directory: Path) -> None:
    """Drop special tokens that no file names: transformers makes up tokens for which the model has no row."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for name in ("bos_token", "eos_token", "pad_token"):
        token = getattr(tokenizer, name)
        is_known = backend is None or token is None or backend.model.token_to_id(token) is not None
        if not (is_known or any(_names(directory / file, token) for file in NAMING_FILES)):
            setattr(tokenizer, name, None)


def _names(path: Path, token: str) -> bool:
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    return token in text or json.dumps(token)[1:-1] in text
