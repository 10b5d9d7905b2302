"""The comments beside a class's fields: where a dataclass says what each value means."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from dataclasses import is_dataclass


def field_comments(described: type) -> dict[str, str]:
    """Return the comment of every field, of base classes too; an empty text for a field without one."""
    found: dict[str, str] = {}
    for owner in reversed(described.__mro__):
        if is_dataclass(owner):
            found |= _own_comments(owner)
    return found


def _own_comments(owner: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):  # a class that was made from a table has no source
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    comments = _comments(source)
    return {
        node.target.id: _beside(comments, node) for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }  # fmt: skip


def _beside(comments: dict[int, str], node: ast.stmt) -> str:
    """Return the comments on the lines of a statement."""
    assert node.end_lineno is not None
    return " ".join(comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT and "fmt:" not in t.string}
