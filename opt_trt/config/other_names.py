"""Names that vLLM, TensorRT-LLM and transformers have for options: taken where they are understood, else answered.

A table of `OtherName`s stands for one interface. What asks for something that happens anyway is accepted, and what
cannot be done is refused with this project's way to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from opt_trt.config.field_types import native, shown
from opt_trt.config.suggestions import did_you_mean
from opt_trt.errors import UserError

ANY = object()  # among the idle values: every value asks for what happens anyway
NOTHING: tuple[object, ...] = (None, False, (), [], {})
PLAIN = (bool, int, float, str, tuple, list, dict, type(None))


@dataclass(frozen=True)
class OtherName:
    """A name of another tool: what it is called here, the values that change nothing, and the way to all others."""

    ours: str | None = None  # the option that takes its value
    idle: tuple[object, ...] = ()  # values that ask for what happens anyway
    way: str = "drop it"  # what to do in place of any other value
    reads: Callable[[Any], dict[str, Any]] | None = None  # our options for its value

    def options(self, value: Any) -> dict[str, Any] | None:
        """Return our options that do what `value` asks for, none if it happens anyway; None if nothing does."""
        if ANY in self.idle or any(_same(value, idle) for idle in self.idle):
            return {}
        if self.reads is not None:
            return self.reads(native(value))
        return None if self.ours is None else {self.ours: value}


def called(ours: str) -> OtherName:
    """Return another name of an option with the same values; None leaves the option as it is."""
    return OtherName(ours, idle=(None,))


def happens(*idle: object, way: str = "drop it") -> OtherName:
    """Return a name without an option here, whose `idle` values ask for what happens anyway."""
    return OtherName(idle=(None, *idle), way=way)


def refused(way: str) -> OtherName:
    """Return a name of what is done in another way, or not at all; values that ask for nothing are accepted."""
    return OtherName(idle=NOTHING, way=way)


def understood(
    given: Mapping[str, Any], own: Collection[str], others: Mapping[str, OtherName], face: str
) -> dict[str, Any]:
    """Return the options of `own` that keyword arguments of `face` ask for; `UserError` names what cannot be done."""
    if nameless := [name for name in given if not isinstance(name, str)]:
        raise UserError(f"{face} takes options by their names, which are text, found {shown(nameless[0])}")
    options = {name: value for name, value in given.items() if name in own}
    for name, value in given.items():
        if name in own:
            continue
        if name not in others:
            raise UserError(f"{face} has no option {name}; {_nearest(name, own, others)}")
        asked = others[name].options(value)
        if asked is None:
            raise UserError(f"{face} has no {name}={shown(value)}: {others[name].way}")
        for ours, wanted in asked.items():
            if ours in options and not _same(options[ours], wanted):
                raise UserError(f"{name} is called {ours} here, and {face} was given both; drop one of the two")
            options[ours] = wanted
    return options


def _nearest(name: str, own: Collection[str], others: Mapping[str, OtherName]) -> str:
    called_here = {other: row.ours for other, row in others.items() if row.ours is not None}
    return did_you_mean(name, [*own, *others], called_here) or f"known are {', '.join(own)}"


def _same(value: Any, other: Any) -> bool:
    """Return whether two plain values are the same; True is not 1. Numbers of numpy and torch are taken for theirs."""
    value, other = native(value), native(other)
    if (
        not isinstance(value, PLAIN)
        or not isinstance(other, PLAIN)
        or isinstance(value, bool) != isinstance(other, bool)
    ):
        return value is other
    return bool(value == other)
