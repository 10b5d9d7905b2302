"""Read JSON files that may have been edited: an error names the value that does not fit; nothing is guessed."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from opt_trt.errors import UserError, reason
from opt_trt.host.files import read_text

MOST_VALUES = 5_000_000  # of a JSON text: every value takes up to 90 bytes, however short its text is
OPENERS = ",[{"  # every value but the first follows one of these; strings may hold them as well, so this overcounts

# The JSON types allowed for a field, by the field's annotation; the reader of any other field checks its value.
PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "dict[str, Any]": (dict,),
    "Mapping": (dict,),
    "dict[str, str]": (dict,),
    "dict[str, list[float]]": (dict,),
}


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; `UserError` names a file that is missing, unreadable or not an object."""
    try:
        values = parse_json(read_text(path))
    except FileNotFoundError:
        raise UserError(f"expected {path}, found nothing there; check the directory given") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise UserError(f"{path} is not readable JSON ({reason(error)}); fetch or write it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object, found {type(values).__name__}")
    return values


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; `ValueError` if it is no JSON, nests too deeply or has too many values."""
    if (values := _most_values(text)) > MOST_VALUES:
        raise ValueError(f"up to {values} values, more than {MOST_VALUES}")
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("too many brackets within brackets") from None


def check_values(text: str, path: Path) -> None:
    """Refuse the JSON text of a file that another library will read if it may have too many values."""
    if (values := _most_values(text)) > MOST_VALUES:
        raise UserError(f"{path} has up to {values} values, more than {MOST_VALUES}; fetch it again")


def _most_values(text: str) -> int:
    return sum(map(text.count, OPENERS))


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return value


def check_types(cls: type, values: Any, where: Path | str) -> None:
    """Refuse an object unless its values have the types of the fields of `cls`; null stands for a missing value."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object for {cls.__name__}, found {values!r}; write the file again")
    for f in fields(cls):
        allowed = PLAIN.get(str(f.type))
        value = values.get(f.name)
        if value is None or allowed is None:
            continue
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise UserError(f"{where}: {f.name} must be {f.type}, found {value!r}; write the file again")
