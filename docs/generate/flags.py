"""Read the flags of a command, and format values, defaults and refusals."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass
from typing import Any

from docs.generate.markdown import code, prose, table
from opt_trt.cli.help_text import flag_fields
from opt_trt.config.flags import Flag, Refusal

WORDS = {int: "integer", float: "number", str: "text"}
DEFAULT = re.compile(r"[;:,]? ?default: (.*)$", re.DOTALL)


@dataclass(frozen=True)
class FlagRow:
    """A flag of a command: its field, the type of the field, and the class that declares it."""

    field: Field[Any]
    hint: Any
    owner: type

    @property
    def flag(self) -> Flag:
        """The description of the flag."""
        described: Flag = self.field.metadata["flag"]
        return described

    @property
    def name(self) -> str:
        """The flag as it is typed."""
        return self.flag.positional or f"--{self.field.name}"


def rows_of(config_class: type) -> list[FlagRow]:
    """Return every flag of a command, in the order of its help."""
    hints = typing.get_type_hints(config_class)
    return [FlagRow(f, hints[f.name], _owner(config_class, f)) for f in flag_fields(config_class)]


def flag_table(rows: Iterable[FlagRow]) -> str:
    """Return the flags as a table."""
    return table(("flag", "value", "default", "meaning"), map(_cells, rows))


def refusal_table(refused: Mapping[str, Refusal]) -> str:
    """Return refused flags by reason, each with the values that are taken because they ask for what happens anyway."""
    reasons: dict[str, list[str]] = {}
    for name, refusal in refused.items():
        advice = f"; {refusal.advice.rstrip(',')}" if refusal.advice else ""
        reasons.setdefault(prose((refusal.reason or "it is so already") + advice), []).append(_refused(name, refusal))
    return table(("reason", "flags (and the values that are accepted)"),
                 ((reason, ", ".join(names)) for reason, names in reasons.items()))  # fmt: skip


def neutral_words(refusal: Refusal) -> str:
    """Return the values a refused flag may have."""
    return ", ".join(code(value) if value else "without a value" for value in refusal.neutral)


def _refused(name: str, refusal: Refusal) -> str:
    return code(name if name.startswith("-") else f"--{name}") + (
        f" ({neutral_words(refusal)})" if refusal.neutral else ""
    )


def _owner(config_class: type, f: Field[Any]) -> type:
    """Return the most basic class that declares this very field."""
    classes = [c for c in config_class.__mro__ if getattr(c, "__dataclass_fields__", {}).get(f.name) is f]
    return classes[-1]


def _cells(row: FlagRow) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in (row.name, *(f"--{alias}" for alias in row.flag.aliases)))
    meaning, default = _meaning(row)
    return names, _value(row), "**required**" if row.flag.required else default, meaning


def _value(row: FlagRow) -> str:
    if row.hint is bool:
        return "switch"
    what = _type_word(row.hint)
    if row.flag.choices:
        what = ", ".join(map(code, row.flag.choices))
    if row.flag.nargs:
        what += ", several"
    if row.flag.bare:
        what += f"; alone it means {code(row.flag.bare)}"
    return what


def _type_word(hint: Any) -> str:
    while arguments := typing.get_args(hint):
        hint = next(a for a in arguments if a is not type(None))
    return WORDS[hint]


def _meaning(row: FlagRow) -> tuple[str, str]:
    """Return the help without its remark on the default, and the default."""
    default = row.field.default
    found = DEFAULT.search(row.flag.help)
    if default in (None, (), MISSING) and found:
        words = code(found[1]) if found[1] in (row.flag.choices or ()) else prose(found[1])
        return prose(row.flag.help[: found.start()]), words
    return prose(row.flag.help), _default(default)


def _default(value: Any) -> str:
    if value is False or value is None or value == () or value is MISSING:
        return ""
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(code(v) for v in values)
