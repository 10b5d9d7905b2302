"""The rooms of `opt_trt` (its packages and root modules), and which room imports which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = "opt_trt"
FACE = "__init__"  # the room of the package's own `__init__.py`
UNDRAWN = ("version",)
LAYERS_TEST = ROOT / "tests/unit/test_layers.py"

Arrow = tuple[str, str]
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RoomGraph:
    """Rooms with the layer and the purpose of each, and the arrows from a room to a room that it imports."""

    layers: dict[str, int]
    purposes: dict[str, str]
    imports: frozenset[Arrow]
    by_name: frozenset[Arrow]  # imports that are written as a string and happen when they are needed
    inside: dict[str, list[list[str]]]  # the parts of large rooms, row by row from the ground up

    @cached_property
    def arrows(self) -> frozenset[Arrow]:
        """The arrows that no longer path implies, those to a plain constant left out."""
        every = {(a, b) for a, b in self.imports | self.by_name if b not in UNDRAWN}
        below = {room: {b for a, b in every if a == room} for room in self.layers}
        return frozenset((a, b) for a, b in every if not _reaches(below, below[a] - {b}, b))


def read_rooms() -> RoomGraph:
    """Read the rooms of the package as it is."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    names = {path: name_of(path) for path in files}
    rows: Rows = _from_test("LAYERS")
    table = _room_layers(rows)
    purposes = {names[path]: ast.get_docstring(tree) or "" for path, tree in trees.items() if names[path] in table}
    layers = {room: layer for room, layer in table.items() if room in purposes}
    static, by_name = set[Arrow](), set[Arrow]()
    for path, tree in trees.items():
        here = room_of(names[path], layers)
        static |= {(here, there) for there in _rooms_named(_imported(tree), layers)}
        modules = {text for text in _strings(tree) if text.removeprefix(f"{PACKAGE}.") in names.values()}
        by_name |= {(here, there) for there in _rooms_named(modules, layers)}
    imports = _between_rooms(static, layers)
    return RoomGraph(layers, purposes, imports, _between_rooms(by_name, layers) - imports, _inside(rows))


def name_of(path: Path) -> str:
    """Return the name of a module within the package; that of the package itself is `FACE`."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts if parts == (FACE,) else parts[: -1 if parts[-1] == FACE else None])


def room_of(module: str, layers: dict[str, int]) -> str:
    """Return the room of a module: the longest beginning of its name that is one; a script is in `__main__`."""
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return "__main__" if parts[-1] == "__main__" else next((name for name in names if name in layers), "")


def _room_layers(rows: Rows) -> dict[str, int]:
    """Return the layer of every room: the row that names it or its lowest part first; the package's face is on top."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        for name in row:
            first.setdefault(name.partition(".")[0], number)
    used = sorted(set(first.values()))
    return {room: used.index(number) for room, number in first.items()} | {FACE: len(used) - 1}


def _inside(rows: Rows) -> dict[str, list[list[str]]]:
    """Return the parts of the rooms that have any, row by row from the ground up."""
    parts: dict[str, list[list[str]]] = {}
    for row in rows:
        named: dict[str, list[str]] = {}
        for room, dot, part in (name.partition(".") for name in row):
            if dot:
                named.setdefault(room, []).append(part)
        for room, its in named.items():
            parts.setdefault(room, []).append(its)
    return parts


def _from_test(name: str) -> Any:
    for node in ast.parse(LAYERS_TEST.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in (getattr(target, "id", None) for target in targets):
            return ast.literal_eval(getattr(node, "value", ast.Constant(None)))
    raise AssertionError(f"{LAYERS_TEST} has no table {name}")


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _strings(tree: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _rooms_named(modules: Iterable[str], layers: dict[str, int]) -> set[str]:
    inside = (name.removeprefix(f"{PACKAGE}.") for name in modules if name.startswith(f"{PACKAGE}."))
    return {room_of(name, layers) for name in inside}


def _between_rooms(arrows: set[Arrow], layers: dict[str, int]) -> frozenset[Arrow]:
    return frozenset((here, there) for here, there in arrows if here != there and {here, there} <= layers.keys())


def _reaches(below: dict[str, set[str]], start: set[str], end: str) -> bool:
    seen, queue = set(start), sorted(start)
    while queue:
        new = below[queue.pop()] - seen
        seen |= new
        queue += sorted(new)
    return end in seen
