"""Pieces of Markdown: tables, code, wrapped paragraphs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from opt_trt.errors import UserError

COLUMNS = 110
FLAG = re.compile(r"(?<![`\w-])(--[a-z]\w+)")
CODE = re.compile(r"(`[^`]*`)")


def paragraph(text: str) -> str:
    """Return the text as a paragraph of lines that fit the page."""
    return textwrap.fill(" ".join(text.split()), COLUMNS, break_long_words=False, break_on_hyphens=False) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell's line breaks become spaces, its pipes are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def block(text: str, language: str = "") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.strip()}\n```\n"


def code(text: object) -> str:
    """Return a word of code."""
    return f"`{text}`"


def prose(text: str) -> str:
    """Return a help text or a reason as Markdown: flags as code, and no accidental HTML."""
    parts = CODE.split(str(UserError(text)))  # options as the command line spells them
    parts[::2] = [FLAG.sub(r"`\1`", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
