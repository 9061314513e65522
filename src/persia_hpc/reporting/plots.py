"""Puts what a run's events tell into charts: loss and metrics, learning rates, staleness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from persia_hpc.printable import printable

from .charts import Line, column_chart, line_chart, swatch
from .run_record import RunRecord
from .telemetry_series import Values
from .timelines import thinned

MOST_METRICS = 10  # that get a chart
# Title, and of what ranks which number: the largest or the sum.
TELEMETRY: tuple[tuple[str, str, str, Values], ...] = (
    ("bytes of memory, largest server", "parameter_server", "rss_bytes", max),
    ("bytes of memory, largest worker", "embedding_worker", "rss_bytes", max),
    ("bytes of memory, largest trainer", "trainer", "rss_bytes", max),
    ("bytes of memory, one process", "one_process", "rss_bytes", max),
    ("rows in tables", "parameter_server", "rows", sum),
    ("bytes of tables", "parameter_server", "table_bytes", sum),
    ("evicted rows", "parameter_server", "evicted_rows", sum),
    ("rows in tables, one process", "one_process", "rows", sum),
    ("bytes of tables, one process", "one_process", "table_bytes", sum),
    ("evicted rows, one process", "one_process", "evicted_rows", sum),
)
MOST_RATES = 5  # the same


def charts(runs: Sequence[RunRecord]) -> Iterator[tuple[str, str]]:
    """Yields sections with their titles; "" where there is nothing to show."""
    yield "Over the steps", _over(runs, by_time=False)
    yield "Over time", _over(runs, by_time=True)
    yield "Memory and tables over time", _grid(_telemetry(runs))
    yield "Staleness and learning rates", _grid([_staleness(runs), *_rates(runs)])


def _grid(figures: Sequence[str]) -> str:
    shown = "".join(filter(None, figures))
    return f'<div class="grid">{shown}</div>' if shown else ""


def _figure(title: str, lines: Sequence[Line], chart: str) -> str:
    if not chart:
        return ""
    keys = "".join(
        f'<span class="key">{swatch(line.colour)}{escape(printable(line.label))}</span>'
        for line in lines
        if line.label
    )
    return f"<figure><figcaption>{escape(printable(title))}{keys}</figcaption>{chart}</figure>"


def _name(runs: Sequence[RunRecord], run: RunRecord) -> str:
    return str(run.directory) if len(runs) > 1 else ""


def _over(runs: Sequence[RunRecord], *, by_time: bool) -> str:
    unit = "seconds" if by_time else "steps"
    wanted = [("train", "", "loss"), ("train", "", "auc")]
    for run in runs:
        wanted += [("evaluate", *each) for each in run.metrics() if ("evaluate", *each) not in wanted]
    wanted = [*wanted[: MOST_METRICS + 2], ("train", "", "samples_per_second"), ("train", "", "staleness")]
    figures = []
    for kind, split, name in wanted:
        lines = [
            Line(
                _name(runs, run),
                thinned(run.timeline.series(kind, name, split or None, by_time=by_time)),
                colour=number,
            )
            for number, run in enumerate(runs)
        ]
        title = f"{split or kind} {name.replace('_', ' ')}"
        if any(len(line.points) > 1 for line in lines):
            figures.append(_figure(title, lines, line_chart(title, lines, unit)))
    return _grid(figures)


def _telemetry(runs: Sequence[RunRecord]) -> list[str]:
    figures = []
    for title, role, name, together in TELEMETRY:
        lines = [
            Line(_name(runs, run), thinned(run.telemetry.over_ranks(role, name, together)), number)
            for number, run in enumerate(runs)
        ]
        if any(len(line.points) > 1 for line in lines):
            figures.append(_figure(title, lines, line_chart(title, lines, "seconds")))
    return figures


def _rates(runs: Sequence[RunRecord]) -> list[str]:
    lines: dict[str, list[Line]] = {}
    for number, run in enumerate(runs):
        for name, points in run.learning_rates().items():
            of = name if len(name) <= 60 else name[:60] + " …"
            lines.setdefault(f"learning rate of {of}", []).append(Line(_name(runs, run), points, number))
    return [
        _figure(title, each, line_chart(title, each, "steps"))
        for title, each in list(lines.items())[:MOST_RATES]
    ]


def _staleness(runs: Sequence[RunRecord]) -> str:
    series = [run.histogram() for run in runs]
    found = [run.number("staleness.bound") for run in runs]
    bounds = [int(bound) for bound in found if bound is not None and 0 <= bound < 2**31]
    chart = column_chart("pulls by staleness", series, "steps whose updates the rows missed", bounds)
    lines = [Line(_name(runs, run), (), number) for number, run in enumerate(runs)]
    said = ", ".join(f"{bound:,}" for bound in bounds)
    return _figure(f"pulls by staleness (bound {said})" if bounds else "pulls by staleness", lines, chart)
