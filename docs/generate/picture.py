"""`docs/rooms.svg`: the rooms on their layers, and arrows to what they import."""

from __future__ import annotations

import re
import textwrap
from html import escape
from itertools import pairwise

from docs.generate.imports import FACE, RoomGraph
from docs.generate.layered import Drawing, Node, place

WIDTH, HEIGHT = 160, 60  # the size of a room
LANE, GAP = 10, 16  # the width of an arrow that passes a row; the distance of neighbours
ROW, EDGE = 98, 14  # from row to row; between a room and the edge of its layer
LABEL, MARGIN = 74, 14
LINE_LENGTH, LINES = 25, 3
COLORS = ("#5b6c8f", "#2f7d8c", "#3f8f5f", "#8a8a2e", "#b7791f", "#b4552d", "#a23b5c", "#7a4a9c", "#4d5bb0", "#444c5c")
STYLE = """
text { font-family: "DejaVu Sans", Verdana, sans-serif; fill: #20242c }
.name { font-size: 14px; font-weight: bold; text-anchor: middle }
.why { font-size: 10px; text-anchor: middle; fill: #444c5c }
.layer { font-size: 12px; fill: #7a8292 }
.room { fill: #ffffff; stroke-width: 1.6 }
.arrow { fill: none; stroke-width: 1.3; stroke-opacity: 0.75 }
.late { stroke-dasharray: 4 3 }
"""
NAMES = {FACE: "opt_trt"}


def picture(rooms: RoomGraph) -> str:
    """Return the drawing as SVG."""
    rows = rows_of(rooms)
    drawing = place(rows, rooms.arrows, WIDTH, LANE, GAP)
    wide = LABEL + max(x for x in drawing.x.values()) + WIDTH / 2 + 2 * MARGIN
    high = _top(len(drawing.rows) - 1) + HEIGHT + EDGE + MARGIN
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" '
        f'height="{high:.0f}" role="img" aria-label="The rooms of opt_trt and their imports">',
        f"<style>{STYLE}</style>", *_heads(), f'<rect width="{wide:.0f}" height="{high:.0f}" fill="#fbfbfc"/>',
        *_bands(rooms, rows, wide), *_arrows(rooms, drawing), *_rooms(rooms, drawing), "</svg>\n",
    ))  # fmt: skip


def rows_of(rooms: RoomGraph) -> dict[str, int]:
    """Return the row of every room that has an arrow, from the top: rooms of a layer stand side by side."""
    drawn = {room for arrow in rooms.arrows for room in arrow}
    layers = sorted({rooms.layers[room] for room in drawn}, reverse=True)
    return {room: layers.index(rooms.layers[room]) for room in drawn}


def _color(rooms: RoomGraph, room: str) -> str:
    return COLORS[rooms.layers[room] % len(COLORS)]


def _heads() -> list[str]:
    """Return an arrow head of each colour: SVG's own colouring of markers is not drawn everywhere."""
    return [
        f'<marker id="head{i}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0,0.6 L7.4,4 L0,7.4 z" fill="{color}"/></marker>' for i, color in enumerate(COLORS)
    ]  # fmt: skip


def _top(row: int) -> float:
    return MARGIN + EDGE + row * ROW


def _bands(rooms: RoomGraph, rows: dict[str, int], wide: float) -> list[str]:
    """Return a strip for every layer, with its number."""
    parts = []
    for row, layer in sorted({(row, rooms.layers[room]) for room, row in rows.items()}):
        top, bottom = _top(row) - EDGE, _top(row) + HEIGHT + EDGE
        parts += [
            f'<rect x="{MARGIN / 2}" y="{top}" width="{wide - MARGIN:.0f}" height="{bottom - top}" rx="8" '
            f'fill="{COLORS[layer % len(COLORS)]}" fill-opacity="0.08"/>',
            f'<text class="layer" x="{MARGIN}" y="{(top + bottom) / 2 + 4}">layer {layer}</text>',
        ]
    return parts


def _rooms(rooms: RoomGraph, drawing: Drawing) -> list[str]:
    parts = []
    for node in (node for row in drawing.rows for node in row if not node.arrow):
        middle, top = _x(drawing, node), _top(node.row)
        parts.append(
            f'<rect class="room" x="{middle - WIDTH / 2:.1f}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="7" '
            f'stroke="{_color(rooms, node.name)}"/>'
        )
        lines = _purpose_lines(rooms.purposes[node.name])
        first = top + HEIGHT / 2 - 6 * len(lines) + 5
        parts.append(f'<text class="name" x="{middle:.1f}" y="{first:.0f}">{NAMES.get(node.name, node.name)}</text>')
        parts += [
            f'<text class="why" x="{middle:.1f}" y="{first + 13 + 12 * i:.0f}">{escape(line)}</text>'
            for i, line in enumerate(lines)
        ]
    return parts


def purpose_of(docstring: str) -> str:
    """Return what a room is for: its docstring up to the first colon, dot or semicolon."""
    return re.split(r"[:;.](?:\s|$)", " ".join(docstring.split()))[0]


def _purpose_lines(docstring: str) -> list[str]:
    return textwrap.wrap(purpose_of(docstring).replace("`", ""), LINE_LENGTH, max_lines=LINES, placeholder=" …")


def _x(drawing: Drawing, node: Node) -> float:
    return LABEL + MARGIN + drawing.x[node]


def _arrows(rooms: RoomGraph, drawing: Drawing) -> list[str]:
    leaving = _ports(drawing, first=True)
    arriving = _ports(drawing, first=False)
    parts = []
    for arrow, path in drawing.paths.items():
        points = [(leaving[arrow], _top(path[0].row) + HEIGHT)]
        for node in path[1:-1]:
            points += [(_x(drawing, node), _top(node.row) - 8), (_x(drawing, node), _top(node.row) + HEIGHT + 8)]
        points.append((arriving[arrow], _top(path[-1].row) - 1))
        late = " late" if arrow not in rooms.imports else ""
        parts.append(
            f'<path class="arrow{late}" d="{_curve(points)}" stroke="{_color(rooms, arrow[0])}" '
            f'marker-end="url(#head{rooms.layers[arrow[0]] % len(COLORS)})"/>'
        )
    return parts


def _ports(drawing: Drawing, first: bool) -> dict[tuple[str, str], float]:
    """Return where each arrow leaves its first room (or enters its last): beside each other, in their order."""
    groups: dict[Node, list[tuple[float, tuple[str, str]]]] = {}
    for arrow, path in drawing.paths.items():
        room, next_node = (path[0], path[1]) if first else (path[-1], path[-2])
        groups.setdefault(room, []).append((drawing.x[next_node], arrow))
    ports = {}
    for room, ends in groups.items():
        step = min(18.0, (WIDTH - 24) / len(ends))
        for i, (_, arrow) in enumerate(sorted(ends)):
            ports[arrow] = _x(drawing, room) + step * (i - (len(ends) - 1) / 2)
    return ports


def _curve(points: list[tuple[float, float]]) -> str:
    """Return a path that leaves and enters every point vertically."""
    words = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        words.append(f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}")
    return " ".join(words)
