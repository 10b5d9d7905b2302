"""A roofline: measurements below the machine's ceilings, as a self-contained SVG file with logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ceilings import MachineCeilings

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 1120, 620, 84, 84, 410, 70
AROUND = 1.8  # how much further than all points an axis reaches on each side
# Colour-blind readers can distinguish these colours, too (Okabe and Ito).
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = (
    "text{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}"
    ".title{font-size:19px;font-weight:600}.quiet{fill:#59636e}.mid{text-anchor:middle}.end{text-anchor:end}"
)


@dataclass(frozen=True)
class Point:
    """One phase of one runner: operations per byte read, the rate in GFLOP/s, and its time as text."""

    runner: str
    phase: str
    intensity: float
    gflops: float
    time: str

    def share(self, ceilings: MachineCeilings) -> float:
        """Return the rate as a share of the roof above it."""
        return self.gflops / min(self.intensity * ceilings.read_gbs, ceilings.bf16_gflops)


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis between two values, and from one pixel to another."""

    low: float
    high: float
    first: float
    last: float

    @staticmethod
    def over(values: Sequence[float], first: float, last: float) -> Axis:
        """Return an axis that holds all values and some room around them."""
        return Axis(min(values) / AROUND, max(values) * AROUND, first, last)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.first + share * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        """The powers of ten on the axis, and what is twice and five times as much."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (step * 10.0**power for power in powers for step in (1, 2, 5))
        return [value for value in values if self.low <= value <= self.high]


def draw_roofline(title: str, subtitle: str, ceilings: MachineCeilings, points: Sequence[Point]) -> str:
    """Return the text of an SVG file."""
    intensities = [point.intensity for point in points]
    ridge = ceilings.bf16_gflops / ceilings.read_gbs
    x = Axis.over([*intensities, ridge], LEFT, WIDTH - RIGHT)
    lowest = min([*(point.gflops for point in points), ceilings.read_gbs * min(intensities)])
    y = Axis.over([lowest, ceilings.bf16_gflops], HEIGHT - BOTTOM, TOP)
    body = [*_grid(x, y), *_roofs(x, y, ceilings), *_points(x, y, points, ceilings), _text(24, 36, title, "title"),
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
    height = (y.first + y.last) / 2
    return [*drawn, _text(middle, y.first + 42, "arithmetic intensity, FLOP/byte", "mid quiet"),
            f'<g transform="rotate(-90 30 {height:.1f})">{_text(30, height, "GFLOP/s", "mid quiet")}</g>']  # fmt: skip


def _roofs(x: Axis, y: Axis, ceilings: MachineCeilings) -> list[str]:
    """Draw the slope of the memory up to the higher roof, and a flat roof for each type."""
    drawn = []
    start = max(x.low, y.low / ceilings.read_gbs)
    ridge = ceilings.bf16_gflops / ceilings.read_gbs
    drawn.append(_line(x.place(start), y.place(start * ceilings.read_gbs), x.place(ridge),
                       y.place(ceilings.bf16_gflops), "#1f2328"))  # fmt: skip
    for name, roof in (("fp32", ceilings.fp32_gflops), ("bf16", ceilings.bf16_gflops)):
        drawn += [_line(x.place(roof / ceilings.read_gbs), y.place(roof), x.last, y.place(roof), "#1f2328"),
                  _text(x.last - 4, y.place(roof) - 6, f"{name} products {roof:.0f} GFLOP/s", "end quiet")]  # fmt: skip
    foot = ridge / AROUND  # somewhat below the ridge
    slope = _text(
        x.place(foot) - 8,
        y.place(foot * ceilings.read_gbs),
        f"reading memory {ceilings.read_gbs:.1f} GB/s",
        "end quiet",
    )
    return [*drawn, slope]


def _points(x: Axis, y: Axis, points: Sequence[Point], ceilings: MachineCeilings) -> list[str]:
    """Draw rings for the context phase, discs for the generation phase, and a legend with their numbers."""
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
    return [*drawn, *_legend(points, colours, ceilings)]


def _legend(points: Sequence[Point], colours: dict[str, str], ceilings: MachineCeilings) -> list[str]:
    """Return a paragraph for each runner: its colour and name, then a line for each phase."""
    left, top = WIDTH - RIGHT + 24, TOP
    drawn = [_text(left, top, "disc: generation; ring: context", "quiet")]
    for name, colour in colours.items():
        top += 28
        drawn += [f'<circle cx="{left + 6}" cy="{top - 4}" r="6" fill="{colour}"/>', _text(left + 20, top, name)]
        for point in (point for point in points if point.runner == name):
            top += 18
            text = f"{point.phase} {point.time}, {point.gflops:.0f} GFLOP/s, {point.share(ceilings):.0%} of the roof"
            drawn.append(_text(left + 20, top, text, "quiet"))
    return drawn


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
