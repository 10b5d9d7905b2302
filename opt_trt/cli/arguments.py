"""Prepare the words of a command line for argparse, which takes whatever begins with a dash for a flag."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from typing import Any

# A flag has two dashes and a name; with a space in it, or other signs, it is a text: `-5`, `---`, `--`, `--- END`.
FLAG = re.compile(r"--(?=[A-Za-z])[\w-]+(=.*)?", re.DOTALL)
# Stands before a value that begins with a dash. No word of a command line can contain it.
MARK = "\0"


def marked(words: Sequence[str], known: Container[str], has_positionals: bool) -> list[str]:
    """Return the words with `MARK` before values that begin with a dash, and flags with underscores in their names.

    `known` are the flags of the command. If it has arguments without a flag, `--` ends the flags.
    """
    ends = words.index("--") if has_positionals and "--" in words else len(words)
    return [*(_marked(word, known) for word in words[:ends]), *(MARK + word for word in words[ends + 1 :])]


def unmarked(text: str) -> str:
    """Return a value, or a message about values, as it was typed."""
    return text.replace(MARK, "").replace(repr(MARK)[1:-1], "")


def reading(value_type: Callable[[str], Any], spellings: Callable[[str], str]) -> Callable[[str], Any]:
    """Return the function that reads a word: it takes the mark away and gives values their usual spelling."""

    def read(word: str) -> Any:
        return value_type(spellings(unmarked(word)))

    read.__name__ = getattr(value_type, "__name__", "value")  # argparse: "invalid int value"
    return read


def _marked(word: str, known: Container[str]) -> str:
    if not word.startswith("-") or word in known:
        return word
    if not FLAG.fullmatch(word):
        return MARK + word
    name, equals, value = word.partition("=")
    underscored = "--" + name[2:].replace("-", "_")
    return (underscored if underscored in known else name) + equals + value
