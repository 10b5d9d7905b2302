"""Place the nodes of a layered drawing: order each row for few crossings, then move nodes near their neighbours.

The method is Sugiyama's. An arrow over several rows passes a dummy node in each row between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SWEEPS = 24
STRAIGHTNESS = 6.0  # the weight of a dummy's wish for its place, beside 1 for a node


@dataclass(frozen=True, order=True)
class Node:
    """A node in a row; a dummy carries the arrow it belongs to."""

    row: int
    name: str
    arrow: tuple[str, str] | None = None


@dataclass
class Drawing:
    """Rows of nodes from top to bottom, the nodes every arrow passes, and where the middle of each node is."""

    rows: list[list[Node]]
    paths: dict[tuple[str, str], list[Node]]
    x: dict[Node, float] = field(default_factory=dict)


def place(row_of: dict[str, int], arrows: Iterable[tuple[str, str]], width: float, lane: float, gap: float) -> Drawing:
    """Return a drawing of nodes of one width, dummies of width `lane`, and `gap` between neighbours."""
    drawing = _with_dummies(row_of, sorted(arrows))
    _order(drawing)
    _move(drawing, width, lane, gap)
    return drawing


def _with_dummies(row_of: dict[str, int], arrows: Sequence[tuple[str, str]]) -> Drawing:
    rows: list[list[Node]] = [[] for _ in range(max(row_of.values()) + 1)]
    nodes = {name: Node(row, name) for name, row in sorted(row_of.items())}
    for node in nodes.values():
        rows[node.row].append(node)
    paths = {}
    for start, end in arrows:
        between = range(row_of[start] + 1, row_of[end])
        dummies = [Node(row, f"{start} {end}", (start, end)) for row in between]
        for node in dummies:
            rows[node.row].append(node)
        paths[start, end] = [nodes[start], *dummies, nodes[end]]
    return Drawing(rows, paths)


def _neighbours(drawing: Drawing) -> tuple[dict[Node, list[Node]], dict[Node, list[Node]]]:
    """Return the nodes above and the nodes below every node."""
    above: dict[Node, list[Node]] = {node: [] for row in drawing.rows for node in row}
    below: dict[Node, list[Node]] = {node: [] for row in drawing.rows for node in row}
    for path in drawing.paths.values():
        for upper, lower in pairwise(path):
            below[upper].append(lower)
            above[lower].append(upper)
    return above, below


def _order(drawing: Drawing) -> None:
    """Sort rows by the mean place of their neighbours, down and up, and keep the order with the fewest crossings."""
    above, below = _neighbours(drawing)
    best = (_crossings(drawing.rows, below), [list(row) for row in drawing.rows])
    for sweep in range(SWEEPS):
        order, neighbours = (drawing.rows, above) if sweep % 2 == 0 else (drawing.rows[::-1], below)
        for other, row in pairwise(order):
            _sort(row, {node: i for i, node in enumerate(other)}, neighbours)
        _swap(drawing.rows, above, below)
        best = min(best, (_crossings(drawing.rows, below), [list(row) for row in drawing.rows]), key=lambda b: b[0])
    drawing.rows = best[1]


def _sort(row: list[Node], places: dict[Node, int], neighbours: dict[Node, list[Node]]) -> None:
    own = {node: i for i, node in enumerate(row)}

    def mean(node: Node) -> float:
        found = [places[n] for n in neighbours[node]]
        return sum(found) / len(found) if found else own[node]

    row.sort(key=lambda node: (mean(node), own[node]))


def _swap(rows: list[list[Node]], above: dict[Node, list[Node]], below: dict[Node, list[Node]]) -> None:
    """Exchange neighbours in a row while that saves crossings."""
    for row in rows:
        for i in range(len(row) - 1):
            pair = row[i], row[i + 1]
            if _crossed(pair, rows, above, below) > _crossed(pair[::-1], rows, above, below):
                row[i], row[i + 1] = pair[::-1]


def _crossed(
    pair: Sequence[Node], rows: list[list[Node]], above: dict[Node, list[Node]], below: dict[Node, list[Node]]
) -> int:
    left, right = pair
    count = 0
    for neighbours, other in ((above, left.row - 1), (below, left.row + 1)):
        places = {node: i for i, node in enumerate(rows[other])} if 0 <= other < len(rows) else {}
        count += sum(places[a] > places[b] for a in neighbours[left] for b in neighbours[right])
    return count


def _crossings(rows: list[list[Node]], below: dict[Node, list[Node]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        places = {node: i for i, node in enumerate(lower)}
        ends = [(i, places[n]) for i, node in enumerate(upper) for n in below[node]]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def _move(drawing: Drawing, width: float, lane: float, gap: float) -> None:
    """Give every node the place nearest to the mean of its neighbours that its row allows."""
    above, below = _neighbours(drawing)
    sizes = {node: lane if node.arrow else width for row in drawing.rows for node in row}
    drawing.x = {node: i * (width + gap) for row in drawing.rows for i, node in enumerate(row)}
    for sweep in range(2 * SWEEPS):
        for row in drawing.rows if sweep % 2 == 0 else drawing.rows[::-1]:
            wanted = [_mean(drawing.x, above[node] + below[node], drawing.x[node]) for node in row]
            weights = [STRAIGHTNESS if node.arrow else 1.0 for node in row]
            steps = [(sizes[a] + sizes[b]) / 2 + gap for a, b in pairwise(row)]
            drawing.x.update(zip(row, _spread(wanted, weights, steps), strict=True))
    left = min(drawing.x[node] - sizes[node] / 2 for node in drawing.x)
    drawing.x = {node: x - left for node, x in drawing.x.items()}


def _mean(x: dict[Node, float], nodes: Sequence[Node], otherwise: float) -> float:
    return sum(x[node] for node in nodes) / len(nodes) if nodes else otherwise


def _spread(wanted: Sequence[float], weights: Sequence[float], steps: Sequence[float]) -> list[float]:
    """Return the places nearest to the wanted ones that lie at least a step apart (isotonic regression)."""
    offsets = [0.0]
    for step in steps:
        offsets.append(offsets[-1] + step)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, total, members = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, more, number = pools.pop()
            mean, total, members = (mean * total + other * more) / (total + more), total + more, members + number
        pools.append((mean, total, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
