"""A heat map as a self-contained SVG file: one row of cells per label, one column per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Dark blue over green to yellow, even in lightness: readable in print and for the colour-blind (viridis).
COLOURS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
WIDTH = 1080  # width of all cells of a row together
CELL_WIDTHS = 8, 64
CELL_HEIGHT = 26
GROUP_GAP = 8  # between the rows of two matrices
MARGIN, LEFT, TOP = 24, 190, 96
REMARK_WIDTH = 88
VALUE_WIDTH = 38  # cells of at least this width show their value
TICK_WIDTH = 26  # the smallest distance of two numbers below the columns
LEGEND = 320, 12  # width and height of the bar of colours
STYLE = (
    "text{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}"
    ".title{font-size:19px;font-weight:600}.quiet{fill:#59636e}.mid{text-anchor:middle}.end{text-anchor:end}"
)


@dataclass(frozen=True)
class Cell:
    """A number, its short text for wide cells, and the hint that appears under the mouse pointer."""

    value: float
    text: str
    hint: str


@dataclass(frozen=True)
class HeatmapRow:
    """A label, its cells, and remarks behind them; there is a gap before the first row of a `group`."""

    label: str
    group: str
    cells: Sequence[Cell]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Heatmap:
    """Rows with the same number of cells, and the texts around them."""

    title: str
    subtitle: str
    unit: str  # the quantity that the colours show
    columns: str  # the name of the columns, which are counted from 0
    remarks: Sequence[str]  # the headings of the remarks
    rows: Sequence[HeatmapRow]


def draw_heatmap(picture: Heatmap) -> str:
    """Return the text of an SVG file."""
    count = len(picture.rows[0].cells)
    cell = max(CELL_WIDTHS[0], min(CELL_WIDTHS[1], WIDTH // count))
    # Colours begin at 0: from the smallest value on, any noise would have all colours.
    low, high = 0.0, max(cell.value for row in picture.rows for cell in row.cells)
    body, y = [], TOP
    for index, row in enumerate(picture.rows):
        y += GROUP_GAP if index and row.group != picture.rows[index - 1].group else 0
        body += _draw_row(row, y, cell, (low, high))
        y += CELL_HEIGHT
    grid = max(cell * count, LEGEND[0])
    width = MARGIN + LEFT + grid + REMARK_WIDTH * len(picture.remarks) + MARGIN
    body += _axis(count, cell, y, picture.columns)
    body += _legend(picture, y + 58, (low, high))
    body += [
        _text(MARGIN, MARGIN + 16, picture.title, "title"),
        _text(MARGIN, MARGIN + 38, picture.subtitle, "quiet"),
        *_remarks(MARGIN + LEFT + cell * count, TOP - 10, picture.remarks, "quiet"),
    ]
    height = y + 58 + 28 + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join((head, f"<title>{escape(picture.title)}</title><style>{STYLE}</style>", paper, *body, "</svg>\n"))


def colour(share: float) -> str:
    """Return the colour of a share of the largest value."""
    place = min(max(share, 0.0), 1.0) * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(*map(_rgb, COLOURS[index : index + 2]), strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _rgb(code: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(code[1:]))


def _ink(paper: str) -> str:
    """Return black or white, whichever is easier to read on a colour."""
    red, green, blue = _rgb(paper)
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def _draw_row(row: HeatmapRow, y: int, width: int, span: tuple[float, float]) -> list[str]:
    middle = y + CELL_HEIGHT // 2 + 4
    drawn = [_text(MARGIN + LEFT - 10, middle, row.label, "end")]
    for index, cell in enumerate(row.cells):
        x, fill = MARGIN + LEFT + index * width, colour(_share(cell.value, *span))
        box = f'<rect x="{x}" y="{y}" width="{width - 1}" height="{CELL_HEIGHT - 1}" fill="{fill}"/>'
        shown = _text(x + width / 2, middle, cell.text, "mid", _ink(fill)) if width >= VALUE_WIDTH else ""
        drawn.append(f"<g><title>{escape(cell.hint)}</title>{box}{shown}</g>")
    return drawn + _remarks(MARGIN + LEFT + len(row.cells) * width, middle, row.remarks)


def _remarks(x: int, y: int, remarks: Sequence[str], kind: str = "") -> list[str]:
    return [_text(x + REMARK_WIDTH * (index + 1), y, text, f"end {kind}") for index, text in enumerate(remarks)]


def _axis(count: int, width: int, y: int, what: str) -> list[str]:
    """Draw numbers below the columns, and leave some out where they would touch."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if step * width >= TICK_WIDTH)
    middles = {index: MARGIN + LEFT + index * width + width / 2 for index in range(0, count, step)}
    ticks = [_text(x, y + 16, str(index), "mid quiet") for index, x in middles.items()]
    return [*ticks, _text(MARGIN + LEFT - 10, y + 16, what, "end quiet")]


def _legend(picture: Heatmap, y: int, span: tuple[float, float]) -> list[str]:
    """Draw the bar of colours with their values."""
    (width, height), (low, high), x = LEGEND, span, MARGIN + LEFT
    stops = "".join(
        f'<stop offset="{index / (len(COLOURS) - 1):.4f}" stop-color="{code}"/>' for index, code in enumerate(COLOURS)
    )
    ticks = [
        _text(x + width * share, y + height + 16, f"{low + (high - low) * share:#.3g}", "mid quiet")
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    bar = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="url(#colours)"/>'
    return [f'<defs><linearGradient id="colours">{stops}</linearGradient></defs>{bar}',
            _text(x - 10, y + 10, picture.unit, "end quiet"), *ticks]  # fmt: skip


def _text(x: float, y: float, text: str, kind: str = "", fill: str = "") -> str:
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{style}>{escape(text)}</text>'
