"""Generated documents are what the code prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.imports import RoomGraph, read_rooms
from docs.generate.layered import place
from docs.generate.pages import pages
from docs.generate.picture import rows_of

ROOT = Path(__file__).parents[2]
PLANNED = {"serve/"}  # rooms that do not exist yet


@pytest.mark.parametrize(("path", "text"), pages().items(), ids=lambda x: getattr(x, "name", ""))
def test_a_generated_document_is_what_the_code_prints(path, text):
    assert path.is_file() and path.read_text() == text, f"docs/{path.name} is out of date: run `make docs`, commit it"


def test_generated_documents_have_no_mark_of_an_option_that_is_not_spelled():
    """Errors mark the names of options with NUL characters, which made a page a binary file."""
    assert not [path.name for path, text in pages().items() if re.search(r"[^\n\t -\U0010ffff]", text)]


def test_an_arrow_that_a_longer_path_implies_is_left_out():
    arrows = frozenset({("a", "b"), ("b", "c"), ("a", "c")})
    rooms = RoomGraph({"a": 2, "b": 1, "c": 0}, {}, arrows, frozenset(), {})
    assert rooms.arrows == {("a", "b"), ("b", "c")}


def test_every_arrow_of_the_picture_points_down():
    rooms = read_rooms()
    rows = rows_of(rooms)
    assert len(rooms.arrows) > 20
    assert not [(a, b) for a, b in rooms.arrows if rows[a] >= rows[b]]


def test_neighbours_in_a_row_do_not_overlap():
    arrows = [("a", "c"), ("a", "d"), ("b", "d"), ("a", "e"), ("b", "f"), ("c", "f")]
    drawing = place({"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2}, arrows, width=100, lane=10, gap=5)
    for row in drawing.rows:
        sizes = [10 if node.arrow else 100 for node in row]
        for left, right, a, b in zip(row, row[1:], sizes, sizes[1:], strict=False):
            assert drawing.x[right] - drawing.x[left] >= (a + b) / 2 + 5 - 1e-9


def test_every_path_of_the_design_exists():
    words = set(re.findall(r"`([\w./*]+)`", (ROOT / "docs/design.md").read_text()))
    paths = {word for word in words if "/" in word or word.endswith((".py", ".h", ".cpp"))} - PLANNED
    assert len(paths) > 30
    assert not {path for path in paths if not (any((ROOT / "opt_trt").rglob(path)) or (ROOT / path).exists())}
