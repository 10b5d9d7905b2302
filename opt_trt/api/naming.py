"""Let a dataclass of options take the names of other tools, and answer what it cannot do in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, NoReturn, TypeVar

from opt_trt.config.other_names import OtherName, understood
from opt_trt.config.sampling_names import SAMPLING_NAMES
from opt_trt.errors import UserError

Options = TypeVar("Options", bound=type)
NONE_IS_A_VALUE = frozenset({"max_tokens"})  # elsewhere None stands for the default


def other_names_taken(described: Options) -> Options:
    """Let a frozen dataclass take `SAMPLING_NAMES`, and None for its defaults."""
    type.__setattr__(described, "__init__", _taking(described, vars(described)["__init__"], SAMPLING_NAMES))
    type.__setattr__(described, "__setattr__", _refuse_change)
    return described


def _taking(described: type, plain: Callable[..., None], names: Mapping[str, OtherName]) -> Callable[..., None]:
    face = described.__name__
    defaults = {f.name: f.default for f in fields(described)}

    @wraps(plain)
    def __init__(self: Any, *positional: Any, **given: Any) -> None:
        if positional:
            raise UserError(
                f"{face} takes options by name only, for example {face}(temperature=0.8), found {positional[0]!r}"
            )
        options = understood(given, defaults, names, face)
        plain(self, **{name: value for name, value in options.items() if value is not None or _takes_none(name)})

    def _takes_none(name: str) -> bool:
        return defaults[name] is None or name in NONE_IS_A_VALUE

    return __init__


def _refuse_change(self: Any, name: str, value: Any) -> NoReturn:
    face = type(self).__name__
    raise UserError(f"{face} does not change, because requests share it: give a changed copy, params.clone({name}=...)")
