"""Charts: whatever they show, no two texts overlap and nothing leaves them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import matplotlib
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from persia_hpc.reporting.charts import (
    FONT,
    HEIGHT,
    MOST_COLUMNS,
    WIDTH,
    Line,
    bar,
    column_chart,
    line_chart,
    short,
    text_width,
    tick_labels,
    ticks,
)

NUMBERS = st.floats(-1e99, 1e99) | st.integers(0, 10**7).map(float) | st.floats(0.0, 1.0)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40)
TEXT = re.compile(r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]*)</text>')


def check_texts(chart: str) -> None:
    boxes = []
    for x, y, anchor, text in TEXT.findall(chart):
        width = text_width(text)
        left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, float(y) - 0.8 * FONT, left + width, float(y) + 0.2 * FONT, text))
    for left, top, right, bottom, text in boxes:
        assert left >= -1, text
        assert right <= WIDTH + 1, text
        assert top >= -1, text
        assert bottom <= HEIGHT + 1, text
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] + 0.1 or b[2] <= a[0] + 0.1 or a[3] <= b[1] + 0.1 or b[3] <= a[1] + 0.1, (a, b)


def check_places(chart: str) -> None:
    numbers = [float(n) for n in re.findall(r'(?:x|y|x1|x2|y1|y2|cx|cy|width|height)="([-\d.naif]+)"', chart)]
    numbers += [float(n) for each in re.findall(r'points="([^"]*)"', chart) for n in re.split("[ ,]", each)]
    assert all(-1 <= n <= WIDTH + 1 for n in numbers)


@given(st.lists(POINTS, max_size=3))
def test_line_charts(lines: list[list[tuple[float, float]]]) -> None:
    chart = line_chart("a & b", [Line("x", sorted(points), i % 2) for i, points in enumerate(lines)], "steps")
    assert (chart == "") == (not any(lines))
    check_texts(chart)
    check_places(chart)
    assert chart.count("<polyline") == sum(len(points) > 1 for points in lines)


COLUMNS = st.dictionaries(
    st.integers(0, 3000) | st.integers(0, 9), st.integers(0, 10**15).map(float), max_size=60
)


@given(st.lists(COLUMNS, min_size=1, max_size=2), st.integers(0, 4000))
def test_column_charts_hold_all_that_was_counted(series: list[dict[int, float]], bound: int) -> None:
    chart = column_chart("pulls", series, "steps", [bound])
    assert (chart == "") == (not any(series))
    check_texts(chart)
    check_places(chart)
    assert chart.count("<rect") <= MOST_COLUMNS * len(series)


def test_a_column_stands_left_of_its_bound() -> None:
    chart = column_chart("pulls", [{0: 3.0, 4: 5.0}], "steps", [4])
    rects = [
        [float(n) for n in found]
        for found in re.findall(r'<rect .*?x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', chart)
    ]
    bound = float(re.findall(r'class="bound c0" x1="([\d.]+)"', chart)[0])
    assert rects[1][0] + rects[1][2] < bound
    assert rects[1][1] < rects[0][1]


@given(st.floats(-1e99, 1e99), st.floats(-1e99, 1e99), st.integers(1, 9))
def test_ticks_are_few_and_inside(a: float, b: float, most: int) -> None:
    low, high = sorted((a, b))
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    slack = 1e-6 * (high - low) + 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= value <= high + slack for value in found)


@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1), st.integers(2, 9))
def test_labels_tell_ticks_apart(low: float, share: float, most: int) -> None:
    high = low + max(abs(low), 1e-3) * share
    labels = tick_labels(ticks(low, high, most))
    assert len(set(labels)) == len(labels)
    assert tick_labels([4741200.0, 4741400.0]) == ["4.7412M", "4.7414M"]
    assert tick_labels([1500.0, 2000.0]) == ["1.5k", "2k"]


@given(NUMBERS)
def test_widths_are_no_less_than_those_of_a_wide_font(value: float) -> None:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), 110)
    for text in (short(value), "steps", "seconds", "steps whose updates the rows missed"):
        assert font.getlength(text) / 10 <= text_width(text)


def test_bars_fill_their_share() -> None:
    assert 'width="25.0%"' in bar(0.25)
    assert 'width="100.0%"' in bar(7.0)
    assert 'width="0.0%"' in bar(-1.0)
