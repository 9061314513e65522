"""Draws charts as SVG, of a size at which their text can be read on a phone and on a screen.

Colours are classes of page.css. Widths of texts are estimated, always too large: none may overlap another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 200  # units of a chart, about a pixel each
FONT = 11
LETTER = 0.68 * FONT  # the width of a digit in the widest of usual fonts, and a little more
TOP, BOTTOM, RIGHT = 10.0, 34.0, 10.0
MOST_COLUMNS = 33


@dataclass(frozen=True)
class Line:
    """Describes a line of a chart; colour is the number of a class in page.css."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


def text_width(text: str) -> float:
    """Returns the most that a text takes, in units of a chart."""
    return LETTER * len(text) + 2  # "M" is wider


def short(value: float, digits: int = 4) -> str:
    """Returns a number for an axis: 1500 as "1.5k", without trailing zeros."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit and abs(value) < 1000 * limit:
            return f"{value / limit:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def tick_labels(values: Sequence[float]) -> list[str]:
    """Returns the numbers of an axis, with more digits than usual where those don't tell them apart."""
    for digits in range(4, 17):
        labels = [short(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def ticks(low: float, high: float, most: int) -> list[float]:
    """Returns at most `most` round numbers from `low` to `high`, evenly spaced; at least one."""
    span = high - low
    if not 0 < span < math.inf or most < 2:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50)):
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        if count <= most:
            return [(first + i) * step for i in range(count)] or [low]
    return [low]


@dataclass(frozen=True)
class _Axes:
    """Holds the scale of a chart: what lies at which place."""

    left: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], *, zero: bool) -> _Axes:
        """Returns axes that hold all points; y begins at 0 if `zero`, else they have a margin."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        low, high = min(ys), max(ys)
        margin = (abs(low) / 10 or 0.5) if low == high else (high - low) / 20
        low, high = (0.0 if zero else low - margin), high + margin
        x_low, x_high = min(0.0, *xs), max(xs)
        if x_low == x_high:
            x_high += max(1.0, abs(x_high))
        labels = tick_labels(ticks(low, high, 5))
        return cls(max(map(text_width, labels)) + 8, x_low, x_high, low, high)

    def x(self, value: float) -> float:
        """Returns where a value lies from left to right."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        """Returns where a value lies from top to bottom."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def drawn_y(self) -> list[str]:
        """Returns the lines and labels of the y axis."""
        parts = []
        values = ticks(self.y_low, self.y_high, 5)
        for value, label in zip(values, tick_labels(values), strict=True):
            y = self.y(value)
            ends = f'x1="{self.left:.1f}" x2="{WIDTH - RIGHT:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="grid" {ends}/>')
            parts.append(_text(self.left - 5, y + FONT / 3, label, "end"))
        return parts

    def drawn_x(self, values: Sequence[float], unit: str) -> list[str]:
        """Returns the labels of the x axis for which there is room, and below them what it shows."""
        parts, free = [], 0.0
        for value, label in zip(values, tick_labels(values), strict=True):
            half = text_width(label) / 2
            middle = min(max(self.x(value), half), WIDTH - half)
            if middle - half >= free:
                parts.append(_text(middle, HEIGHT - BOTTOM + FONT + 3, label, "middle"))
                free = middle + half + LETTER
        parts.append(_text((self.left + WIDTH - RIGHT) / 2, HEIGHT - 4, unit, "middle"))
        return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def line_chart(title: str, lines: Sequence[Line], unit: str) -> str:
    """Returns lines over an axis with numbers, "" without a point. unit: what that axis shows."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    axes = _Axes.around(points, zero=False)
    parts = [*axes.drawn_y(), *axes.drawn_x(ticks(axes.x_low, axes.x_high, 6), unit)]
    for line in lines:
        at = [f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line.points]
        if len(at) > 1:
            parts.append(f'<polyline class="c{line.colour}" points="{" ".join(at)}"/>')
        if len(at) <= 30:
            parts += [
                f'<circle class="f{line.colour}" r="2.5" cx="{place.partition(",")[0]}" '
                f'cy="{place.partition(",")[2]}"/>'
                for place in at
            ]
    return _svg(title, parts)


def column_chart(
    title: str, series: Sequence[dict[int, float]], unit: str, bounds: Sequence[int] = ()
) -> str:
    """Returns columns over whole numbers, beside each other for each series, and a line right of each bound.

    Where there are many numbers, some that follow each other share a column. "" without a column.
    """
    last = max([*bounds, *(n for each in series for n in each)], default=-1)
    if last < 0 or not any(series):
        return ""
    share = -(-(last + 1) // MOST_COLUMNS)  # numbers in a column
    sums: list[dict[int, float]] = []
    for each in series:
        found: dict[int, float] = {}
        for n, value in each.items():
            found[n // share] = found.get(n // share, 0.0) + value
        sums.append(found)
    places = last // share + 1
    tallest = max((value for each in sums for value in each.values()), default=0.0)
    axes = _Axes.around([(-0.5, 0.0), (places - 0.5, tallest)], zero=True)
    parts = axes.drawn_y()
    for position in range(len(sums)):
        wide = (axes.x(0.4) - axes.x(-0.4)) / len(sums)
        for place, value in sorted(sums[position].items()):
            x, y = axes.x(place - 0.4) + position * wide, axes.y(value)
            size = f'width="{wide:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
            parts.append(f'<rect class="f{position}" x="{x:.1f}" y="{y:.1f}" {size}/>')
    parts += _column_labels(axes, places, share, unit)
    for position, bound in enumerate(bounds):
        x = axes.x((bound + 1) / share - 0.5)
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:.1f}" y2="{HEIGHT - BOTTOM:.1f}"'
        parts.append(f'<line class="bound c{position}" {ends}/>')
    return _svg(title, parts)


def _column_labels(axes: _Axes, places: int, share: int, unit: str) -> list[str]:
    parts, free = [], 0.0
    for place in range(places):
        label = str(place * share)
        half = text_width(label) / 2
        middle = axes.x(place)
        if middle - half >= free and middle + half <= WIDTH:
            parts.append(_text(middle, HEIGHT - BOTTOM + FONT + 3, label, "middle"))
            free = middle + half + LETTER
    return [*parts, _text((axes.left + WIDTH - RIGHT) / 2, HEIGHT - 4, unit, "middle")]


def bar(share: float, colour: int = 0) -> str:
    """Returns a bar that fills this share, 0 to 1, of the cell of a table."""
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<svg class="bar" aria-hidden="true"><rect class="track" width="100%" height="100%"/>'
        f'<rect class="f{colour}" width="{width:.1f}%" height="100%"/></svg>'
    )


def swatch(colour: int) -> str:
    """Returns a piece of a line as a key to its meaning."""
    line = f'<line class="c{colour}" stroke-width="3" x1="0" y1="4" x2="22" y2="4"/>'
    return f'<svg viewBox="0 0 22 8" aria-hidden="true">{line}</svg>'
