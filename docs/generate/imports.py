"""The rooms of `opt_trt` (its packages and root modules), and which room imports which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "opt_trt"
FACE = "__init__"  # the room of the package's own `__init__.py`
LAYERS_TEST = ROOT / "tests/unit/test_layers.py"

Arrow = tuple[str, str]


@dataclass(frozen=True)
class House:
    """Rooms with the layer and the purpose of each, and the arrows from a room to a room that it imports."""

    layers: dict[str, int]
    purposes: dict[str, str]
    imports: frozenset[Arrow]
    by_name: frozenset[Arrow]  # imports written as a string, carried out when they are needed

    @cached_property
    def arrows(self) -> frozenset[Arrow]:
        """The arrows that no longer path implies."""
        every = self.imports | self.by_name
        below = {room: {b for a, b in every if a == room} for room in self.layers}
        return frozenset((a, b) for a, b in every if not _reaches(below, below[a] - {b}, b))


def read_house() -> House:
    """Read the rooms of the package as it is."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    rooms = {path: room_of(path) for path in files}
    modules, purposes = {_module(path) for path in files}, _purposes(rooms, trees)
    layers = {room: layer for room, layer in room_layers().items() if room in purposes}
    static, by_name = set[Arrow](), set[Arrow]()
    for path, tree in trees.items():
        static |= {(rooms[path], there) for name in _imported(tree) for there in _room_named(name, layers)}
        by_name |= {(rooms[path], there) for name in _strings(tree) & modules for there in _room_named(name, layers)}
    imports = _between_rooms(static, layers)
    return House(layers, purposes, imports, _between_rooms(by_name, layers) - imports)


def room_layers() -> dict[str, int]:
    """Return the layer of every room, from the test that holds the code to it; the package's face is on top."""
    for node in ast.parse(LAYERS_TEST.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYER":
            layers: dict[str, int] = ast.literal_eval(node.value)
            return {FACE: max(layers.values())} | layers
    raise AssertionError(f"{LAYERS_TEST} has no table LAYER")


def room_of(path: Path) -> str:
    """Return the room of a file: the first part of its path in the package, or `__main__` for what is started."""
    return path.stem if path.name == "__main__.py" else path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def _room_named(module: str, layers: dict[str, int]) -> Iterator[str]:
    package, *parts = module.split(".")
    if package == PACKAGE and parts and parts[0] in layers:
        yield parts[0]


def _between_rooms(arrows: set[Arrow], layers: dict[str, int]) -> frozenset[Arrow]:
    return frozenset((here, there) for here, there in arrows if here != there and {here, there} <= layers.keys())


def _purposes(rooms: dict[Path, str], trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Return the docstring of every room: of its `__init__.py`, or of the module that it is."""
    root = ROOT / PACKAGE
    doors = {room: path for path, room in rooms.items() if path in (root / f"{room}.py", root / room / "__init__.py")}
    return {room: ast.get_docstring(trees[path]) or "" for room, path in doors.items()}


def _reaches(below: dict[str, set[str]], start: set[str], end: str) -> bool:
    seen, queue = set(start), sorted(start)
    while queue:
        new = below[queue.pop()] - seen
        seen |= new
        queue += sorted(new)
    return end in seen
