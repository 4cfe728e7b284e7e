"""Plots as inline SVG: numbers are rounded to a tenth of a pixel, colours are the page's own, so that both of its modes
are readable.

A panel is drawn for the width of a telephone and placed beside others where there is room. Numbers that are not finite
are not drawn; a panel without any says so.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from eval.report.markup import EMPTY, joined

Point = tuple[float, float]
FEW_POINTS = 20
"""A line of fewer points has a dot at each."""
MOST_POINTS = 240
"""A line of more points is averaged over as many stretches."""


@dataclass(frozen=True)
class Line:
    """A curve."""

    points: Sequence[Point]
    colour: int = 0
    """Number of its colour."""
    dotted: bool = False


@dataclass(frozen=True)
class Area:
    """A histogram."""

    edges: Sequence[float]
    """(B + 1,) ascending."""
    heights: Sequence[float]
    """(B,)."""
    colour: int = 0


@dataclass(frozen=True)
class Band:
    """A stretch of the horizontal axis with a name."""

    begin: float
    end: float
    name: str


@dataclass(frozen=True)
class Axis:
    """One axis of a panel; without limits it spans what is drawn."""

    name: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Size:
    """Of a panel, in pixels."""

    width: int = 340
    height: int = 220


LARGE = Size()
SMALL = Size(250, 150)
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 34
"""Margins of a panel, in pixels."""


@dataclass(frozen=True)
class Scale:
    """Values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        values = (self.low, self.high, value)
        low, high, at = (math.log10(each) if self.log else each for each in values)
        return self.start + (self.stop - self.start) * (at - low) / (high - low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the limits: powers of ten, or multiples of 1, 2 or 5 of one."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            found = [10.0**decade for decade in decades]
            return found[:: max(1, math.ceil(len(found) / 5))] if len(found) > 1 else [self.low, self.high]
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / count))
        for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            if last - first <= count:
                break
        return [step * place for place in range(first, last + 1)]


def panel(
    shapes: Sequence[Line | Area],
    x: Axis,
    y: Axis,
    *,
    summary: str,
    bands: Sequence[Band] = (),
    size: Size = LARGE,
) -> Markup:
    """Curves and histograms over one pair of axes.

    Args:
        shapes: what is drawn, the first at the back.
        x: the horizontal axis.
        y: the vertical axis.
        summary: what it shows, in words.
        bands: stretches of the horizontal axis.
        size: of the panel.
    """
    drawn = [shape for shape in map(_finite, shapes) if _corners(shape)]
    corners = [corner for shape in drawn for corner in _corners(shape)]
    corners = [corner for corner in corners if (corner[0] > 0 or not x.log) and (corner[1] > 0 or not y.log)]
    if not corners:
        return _frame(size, f"{summary}: no finite number to draw", _text(size.width / 2, size.height / 2, "no number"))
    across = _scale(x, [point[0] for point in corners], LEFT, size.width - RIGHT)
    up = _scale(y, [point[1] for point in corners], size.height - BOTTOM, TOP)
    parts = [_bands(bands, across, size), _axes(across, up, x.name, y.name, size)]
    for shape in drawn:
        parts.append(_line(shape, across, up) if isinstance(shape, Line) else _area(shape, across, up))
    return _frame(size, summary, joined(parts))


def intervals(rows: Sequence[tuple[str, float, float, float, float]], *, summary: str, unit: str) -> Markup:
    """Values with intervals, one below another, each beside a mark that it is judged against.

    Args:
        rows: (name, value, low, high, mark); a mark of NaN is not drawn.
        summary: what it shows, in words.
        unit: of the values.
    """
    left, line = 118, 24
    size = Size(340, TOP + line * len(rows) + BOTTOM)
    values = [value for row in rows for value in row[1:] if math.isfinite(value)]
    across = _scale(Axis(low=min(0.0, *values), high=max(0.0, *values)), values, left, size.width - 50)
    bottom = size.height - BOTTOM
    parts = []
    for tick in across.ticks():
        parts.append(_rule(across(tick), TOP - 6, across(tick), bottom, "gridline"))
        parts.append(_text(across(tick), bottom + 14, number(tick)))
    parts.append(_text((left + size.width - 50) / 2, bottom + 28, unit))
    for index, (name, value, low, high, mark) in enumerate(rows):
        at = TOP + line * (index + 0.5)
        parts.append(_text(left - 8, at + 4, name, "end"))
        parts.append(_rule(across(low), at, across(high), at, "line k0"))
        parts.append(_dot(across(value), at, "dot k0", 4))
        if math.isfinite(mark):
            parts.append(_rule(across(mark), at - 8, across(mark), at + 8, "line k1"))
        parts.append(_text(size.width - 2, at + 4, number(value), "end"))
    return _frame(size, summary, joined(parts))


def number(value: float) -> str:
    """Three digits, with k for thousands: `12.5k`."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _finite(shape: Line | Area) -> Line | Area:
    """A line without points that are not finite, averaged where there are many; an area as it is."""
    if isinstance(shape, Area):
        return shape
    points = [(float(a), float(b)) for a, b in shape.points if math.isfinite(a) and math.isfinite(b)]
    if len(points) > MOST_POINTS:
        stretches = np.array_split(np.array(points), MOST_POINTS)
        points = [(float(a), float(b)) for a, b in (stretch.mean(0) for stretch in stretches)]
    return Line(points, shape.colour, shape.dotted)


def _corners(shape: Line | Area) -> list[Point]:
    if isinstance(shape, Line):
        return list(shape.points)
    heights = [height for height in shape.heights if math.isfinite(height)]
    return [(shape.edges[0], 0.0), (shape.edges[-1], max(heights))] if heights else []


def _scale(axis: Axis, values: Sequence[float], start: float, stop: float) -> Scale:
    """Limits as the axis says, or as the values are; equal ones are moved apart."""
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if axis.log:
        return Scale(low, high if high > low else 10 * low, start, stop, True)
    if not high > low:
        margin = abs(high) / 2 or 0.5
        low, high = low - margin, low + margin
    return Scale(low, high, start, stop)


def _axes(across: Scale, up: Scale, below: str, beside: str, size: Size) -> Markup:
    bottom = size.height - BOTTOM
    parts = []
    for tick in up.ticks(4 if size.height > 160 else 3):
        parts.append(_rule(LEFT, up(tick), size.width - RIGHT, up(tick), "gridline"))
        parts.append(_text(LEFT - 6, up(tick) + 4, number(tick), "end"))
    for tick in across.ticks(5 if size.width > 300 else 4):
        parts.append(_text(across(tick), bottom + 15, number(tick)))
    parts.append(_rule(LEFT, bottom, size.width - RIGHT, bottom, "axis"))
    parts.append(_text((LEFT + size.width - RIGHT) / 2, size.height - 4, below))
    if beside:
        parts.append(_text(2, 10, beside, "start"))
    return joined(parts)


def _bands(bands: Sequence[Band], across: Scale, size: Size) -> Markup:
    """Every other band is darker; its name stands at its top where there is room."""
    parts = []
    for index, band in enumerate(bands):
        begin = across(max(band.begin, across.low))
        width = across(min(band.end, across.high)) - begin
        if width <= 0:
            continue
        parts.append(
            Markup('<rect class="band{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                " odd" if index % 2 else "", _px(begin), TOP, _px(width), size.height - BOTTOM - TOP, band.name
            )
        )
        short = band.name if width > 7 * len(band.name) else band.name.split()[-1]
        if width > 10:
            parts.append(_text(begin + width / 2, TOP - 5, short))
    return joined(parts)


def _line(line: Line, across: Scale, up: Scale) -> Markup:
    points = [p for p in line.points if (p[0] > 0 or not across.log) and (p[1] > 0 or not up.log)]
    placed = [(across(a), up(min(max(b, up.low), up.high))) for a, b in points]
    path = Markup('<path class="line k{}{}" d="{}"/>').format(
        line.colour, " dotted" if line.dotted else "", _path(placed)
    )
    if line.dotted or len(placed) >= FEW_POINTS:
        return path
    return path + joined(_dot(a, b, f"dot k{line.colour}", 2.4) for a, b in placed)


def _area(area: Area, across: Scale, up: Scale) -> Markup:
    placed = [(across(area.edges[0]), up(0.0))]
    for low, high, height in zip(area.edges[:-1], area.edges[1:], area.heights, strict=True):
        placed += [(across(low), up(height)), (across(high), up(height))]
    placed.append((across(area.edges[-1]), up(0.0)))
    return Markup('<path class="area k{}" d="{}Z"/>').format(area.colour, _path(placed))


def _path(points: Iterable[Point]) -> str:
    steps = [f"{_px(a)} {_px(b)}" for a, b in points]
    return "M" + "L".join(steps)


def _frame(size: Size, summary: str, body: Markup) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        size.width, size.height, summary, body
    )


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _px(x1), _px(y1), _px(x2), _px(y2))


def _dot(x: float, y: float, kind: str, radius: float) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, _px(x), _px(y), radius)


def _text(x: float, y: float, words: str, anchor: str = "middle") -> Markup:
    if not words:
        return EMPTY
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_px(x), _px(y), anchor, words)


def _px(value: float) -> str:
    """Tenths of a pixel, without a trailing zero."""
    return f"{value:.1f}".removesuffix(".0")
