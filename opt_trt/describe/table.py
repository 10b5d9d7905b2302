"""Tables of names and numbers: aligned columns, and one line for tensors that all layers have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")

Item = TypeVar("Item")


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """Return the lines of a table with its head and a rule; the first `left` columns are flush left, the rest right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    text = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def labelled(values: dict[str, str]) -> list[str]:
    """Return lines of label and text."""
    width = max(map(len, values))
    return [f"{label.ljust(width)}  {text}" for label, text in values.items()]


def collapsed(
    items: Iterable[Item], name: Callable[[Item], str], alike: Callable[[Item], object]
) -> dict[str, list[Item]]:
    """Group items by the name of their line; items of different layers share `layers.0-3.` if `alike` gives equals."""
    lines: dict[object, list[Item]] = {}
    for item in items:
        layer = LAYER.fullmatch(name(item))
        key = (layer[1], layer[3], alike(item)) if layer else (name(item),)
        lines.setdefault(key, []).append(item)
    return {_line_name([name(item) for item in line]): line for line in lines.values()}


def _line_name(names: list[str]) -> str:
    layers = [LAYER.fullmatch(name) for name in names]
    if len(names) == 1 or layers[0] is None:
        return names[0]
    return f"{layers[0][1]}{_ranges([int(layer[2]) for layer in layers if layer])}{layers[0][3]}"


def _ranges(numbers: list[int]) -> str:
    """Write `[0, 1, 2, 5]` as `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def number_text(value: float) -> str:
    """Write a number with six decimals, so that decimal points are aligned; write others in full if that hides them."""
    if not math.isfinite(value) or abs(value) >= 1e9:
        return f"{value:g}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.6f}" if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"
