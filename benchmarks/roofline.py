"""A roofline: measurements below the machine's ceilings, as a self-contained SVG file with logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ceilings import MachineCeilings

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 1080, 620, 90, 80, 330, 70
# Colour-blind readers can distinguish these colours, too (Okabe and Ito).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = (
    "text{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}"
    ".title{font-size:19px;font-weight:600}.quiet{fill:#59636e}.mid{text-anchor:middle}.end{text-anchor:end}"
)


@dataclass(frozen=True)
class Point:
    """One phase of one runner: operations per byte read, and the rate in GFLOP/s."""

    runner: str
    phase: str
    intensity: float
    gflops: float


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from one power of ten to another, and from one pixel to another."""

    low: int
    high: int
    first: float
    last: float

    @staticmethod
    def over(values: Sequence[float], first: float, last: float) -> Axis:
        """Return an axis that holds all values."""
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return Axis(low, max(high, low + 1), first, last)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        """The powers of ten on the axis."""
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw_roofline(title: str, subtitle: str, ceilings: MachineCeilings, points: Sequence[Point]) -> str:
    """Return the text of an SVG file."""
    intensities = [point.intensity for point in points]
    ridge = ceilings.bf16_gflops / ceilings.read_gbs
    x = Axis.over([*intensities, ridge], LEFT, WIDTH - RIGHT)
    lowest = min([*(point.gflops for point in points), ceilings.read_gbs * min(intensities)])
    y = Axis.over([lowest, ceilings.bf16_gflops], HEIGHT - BOTTOM, TOP)
    body = [*_grid(x, y), *_roofs(x, y, ceilings), *_points(x, y, points), _text(24, 36, title, "title"),
            _text(24, 58, subtitle, "quiet")]  # fmt: skip
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join((head, f"<title>{escape(title)}</title><style>{STYLE}</style>", paper, *body, "</svg>\n"))


def _grid(x: Axis, y: Axis) -> list[str]:
    drawn = []
    for tick in x.ticks:
        drawn += [_line(x.place(tick), y.first, x.place(tick), y.last, "#eaeef2"),
                  _text(x.place(tick), y.first + 18, f"{tick:g}", "mid quiet")]  # fmt: skip
    for tick in y.ticks:
        drawn += [_line(x.first, y.place(tick), x.last, y.place(tick), "#eaeef2"),
                  _text(x.first - 8, y.place(tick) + 4, f"{tick:g}", "end quiet")]  # fmt: skip
    middle = (x.first + x.last) / 2
    return [*drawn, _text(middle, y.first + 42, "operations a byte that has to be read", "mid quiet"),
            _text(x.first, y.last - 8, "GFLOP/s", "quiet")]  # fmt: skip


def _roofs(x: Axis, y: Axis, ceilings: MachineCeilings) -> list[str]:
    """Draw the slope of the memory up to the higher roof, and a flat roof for each type."""
    drawn = []
    start = max(x.ticks[0], y.ticks[0] / ceilings.read_gbs)
    ridge = ceilings.bf16_gflops / ceilings.read_gbs
    drawn.append(_line(x.place(start), y.place(start * ceilings.read_gbs), x.place(ridge),
                       y.place(ceilings.bf16_gflops), "#1f2328"))  # fmt: skip
    for name, roof in (("fp32", ceilings.fp32_gflops), ("bf16", ceilings.bf16_gflops)):
        drawn += [_line(x.place(roof / ceilings.read_gbs), y.place(roof), x.last, y.place(roof), "#1f2328"),
                  _text(x.last - 4, y.place(roof) - 6, f"{name} products {roof:.0f} GFLOP/s", "end quiet")]  # fmt: skip
    return [*drawn, _text(WIDTH - RIGHT + 20, TOP, f"slope: reading memory, {ceilings.read_gbs:.1f} GB/s", "quiet")]


def _points(x: Axis, y: Axis, points: Sequence[Point]) -> list[str]:
    """Draw rings for the context phase, discs for the generation phase, and a legend."""
    names = list(dict.fromkeys(point.runner for point in points))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    drawn = []
    for point in points:
        colour = colours[point.runner]
        fill = colour if point.phase == "generation" else "#fff"
        hint = f"{point.runner}, {point.phase}: {point.gflops:.1f} GFLOP/s, {point.intensity:.2f} operations a byte"
        drawn.append(
            f'<circle cx="{x.place(point.intensity):.1f}" cy="{y.place(point.gflops):.1f}" r="6" fill="{fill}" '
            f'stroke="{colour}" stroke-width="2"><title>{escape(hint)}</title></circle>'
        )
    for index, name in enumerate(names):
        top = TOP + 30 + 22 * index
        drawn += [f'<circle cx="{WIDTH - RIGHT + 28}" cy="{top - 4}" r="6" fill="{colours[name]}"/>',
                  _text(WIDTH - RIGHT + 42, top, name)]  # fmt: skip
    return [*drawn, _text(WIDTH - RIGHT + 20, TOP + 44 + 22 * len(names), "disc: generation; ring: context", "quiet")]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
