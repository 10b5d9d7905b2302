"""Check that the fields of a configuration have the types they declare, before anything runs with them.

Python does not: `max_tokens=2.5` would be a limit that no output meets, and `top_k=True` a tensor error in a step that
other requests share. Numbers of numpy and torch are taken for what they are; a `bool` is no number.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from numbers import Real
from typing import Any

from opt_trt.errors import UserError, spelled

LONGEST_SHOWN = 100  # characters
MOST_BITS = 1000  # of an integer: a larger one fits no float, and Python may refuse to print it


class WrongType(Exception):
    """A value does not have the declared type."""


def check_field_types(config: Any) -> None:
    """Give every field of a dataclass, a frozen one too, a value of its declared type; `UserError` names what is not.

    A field whose type is no number, text, or collection of these keeps its value unchecked.
    """
    hints = _hints(type(config))  # type: ignore[arg-type]  # a class can be hashed
    for f in fields(config):
        value = getattr(config, f.name)
        object.__setattr__(config, f.name, checked(spelled(f.name), hints[f.name], value))


def shown(value: object) -> str:
    """Return a value for the text of an error, which is one line whatever the value is."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"one of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # an integer within a list has more digits than Python prints, or a class of the caller's fails
        return type(value).__name__
    if len(text) > LONGEST_SHOWN or "\n" in text:
        return f"{type(value).__name__} of {len(text)} characters" if isinstance(value, str) else type(value).__name__
    return text


def native(value: Any) -> Any:
    """Return the number, text or lists that an array of numpy, torch or pandas holds, and anything else as it is."""
    try:
        return value.tolist() if hasattr(value, "tolist") else value
    except (RuntimeError, TypeError):  # a tensor without numbers
        return value


def checked(name: str, hint: Any, value: Any) -> Any:
    """Return `value` as the type that `hint` names; `UserError` if it is of another type."""
    try:
        return converted(hint, value)
    except WrongType:
        raise UserError(f"{name} must be {described(hint)}, found {shown(value)}") from None


def converted(hint: Any, value: Any) -> Any:
    """Return `value` as the type that `hint` names; `WrongType` if it is of another type."""
    if hint in NUMBERS:
        return NUMBERS[hint][1](value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(inner, value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise WrongType
        return {converted(inner[0], key): converted(inner[1], item) for key, item in value.items()}
    if origin is Sequence:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
            raise WrongType
        items = [converted(inner[0], item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def described(hint: Any) -> str:
    """Return what a type is called in an error: `an integer or None`."""
    if hint in NUMBERS:
        return NUMBERS[hint][0]
    if hint is types.NoneType:
        return "None"
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Mapping:
        return f"a mapping from {' to '.join(map(described, inner))}"
    if typing.get_origin(hint) is Sequence:
        return f"a list, each item {described(inner[0])}"
    return " or ".join(map(described, inner))


def _one_of(hints: Sequence[Any], value: Any) -> Any:
    if value is None and types.NoneType in hints:
        return None
    for hint in hints:
        if hint is not types.NoneType:
            try:
                return converted(hint, value)
            except WrongType:
                continue
    raise WrongType


def _integer(value: Any) -> int:
    scalar = _plain(value)
    if isinstance(scalar, bool) or not hasattr(scalar, "__index__"):
        raise WrongType
    try:
        number = operator.index(scalar)
    except (TypeError, RuntimeError) as error:  # a tensor of floats, of several elements, or of none that is stored
        raise WrongType from error
    if number.bit_length() > MOST_BITS:
        raise WrongType
    return number


def _number(value: Any) -> float:
    scalar = _plain(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise WrongType
    if isinstance(scalar, int) and scalar.bit_length() > MOST_BITS:
        raise WrongType
    try:
        return scalar if isinstance(scalar, int | float) else float(scalar)
    except OverflowError as error:  # a fraction of large numbers
        raise WrongType from error


def _plain(value: Any) -> Any:
    """Return Python's own number for a scalar of numpy or torch, and anything else as it is."""
    return native(value) if getattr(value, "ndim", None) == 0 else value


def _switch(value: Any) -> bool:
    scalar = _plain(value)
    if not isinstance(scalar, bool):
        raise WrongType
    return scalar


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongType
    return value


NUMBERS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    int: ("an integer", _integer),
    float: ("a number", _number),
    bool: ("True or False", _switch),
    str: ("text", _text),
}


@cache
def _hints(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)
