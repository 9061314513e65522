"""Writes the report of one run, or of two side by side, as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any

from persia_hpc.checkpoint.listing import size_text
from persia_hpc.printable import printable

from .advice import SHOWN, advice, spent
from .charts import bar, swatch
from .figures import figure
from .plots import charts
from .run_record import RunRecord

MOST_TEXT = 300  # characters of a text out of a file
MOST_WARNINGS = 40  # the last ones
MOST_NUMBERS = 600  # of summary.json, in its order: slices can have thousands
LEDGER = (
    "applied_rows",
    "evicted_in_flight_rows",
    "unadmitted_rows",
    "nonfinite_rows",
    "dropped_rows",
)
_Format = Callable[[float], str]


def html_page(runs: Sequence[RunRecord]) -> str:
    """Returns the report of one or two runs."""
    title = " and ".join(text(run.directory) for run in runs)
    css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    sections = [
        ("", _side_by_side(runs, _head)),
        ("Where the time went, and what to change", _side_by_side(runs, _time)),
        *charts(runs),
        ("Where each pulled row ended", _side_by_side(runs, _ledger)),
        ("What each role did", _side_by_side(runs, _roles)),
        ("Checkpoints", _side_by_side(runs, _checkpoints)),
        ("Warnings", _side_by_side(runs, _warnings)),
        ("All numbers", _numbers(runs)),
    ]
    body = "\n".join(
        f"<section>{f'<h2>{escape(name)}</h2>' if name else ''}\n{content}</section>"
        for name, content in sections
        if content
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: persia-hpc report</title>\n<style>\n{css}</style></head>\n<body>\n"
        f"<h1>{title}</h1>\n{body}\n"
        "<footer>Made by persia-hpc report. The fields are explained in docs/summary.md; dotted lines in "
        "histograms are staleness bounds.</footer>\n</body></html>\n"
    )


def text(value: object) -> str:
    """Returns a text out of a file as HTML, cut where it is long."""
    whole = str(value)
    return escape(printable(whole if len(whole) <= MOST_TEXT else whole[:MOST_TEXT] + " …"))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 1 else f"{value:.3f} s"


def _value(run: RunRecord, name: str, form: _Format) -> str:
    """Returns a number of summary.json as it is shown, with all of its digits in the page's source."""
    value = run.number(name)
    if value is None:
        return "–"
    *parts, last = name.split(".")
    exact = json.dumps(run.part(*parts)[last])
    if len(exact) > 40:
        return "–"
    return f'<data data-name="{text(name)}" value="{exact}">{form(value)}</data>'


def _side_by_side(runs: Sequence[RunRecord], content: Callable[[RunRecord], str]) -> str:
    """Returns what there is to show of each run, with its name if there are two; "" if it is nothing."""
    if len(runs) == 1:
        return content(runs[0])
    each = [(run, content(run)) for run in runs]
    if not any(shown for _, shown in each):
        return ""
    parts = "".join(
        f'<div><h3><span class="key">{swatch(i)}</span>{text(run.directory)}</h3>{shown}</div>'
        for i, (run, shown) in enumerate(each)
    )
    return f'<div class="grid">{parts}</div>'


def _number_of(run: RunRecord, role: str) -> str:
    name = SHOWN[role].removesuffix("s" if run.number(f"roles.{role}s") == 1 else "")
    return f"{_value(run, f'roles.{role}s', _count)} {name}"


def _head(run: RunRecord) -> str:
    mode = text(run.summary.get("mode", "–"))
    if reducer := run.summary.get("reducer"):
        mode += f", {text(reducer)}"
    roles = ", ".join(_number_of(run, role) for role in SHOWN)
    tiles = [
        ("status", text(run.state)),
        ("steps", _value(run, "steps", _count)),
        ("samples", _value(run, "samples", _count)),
        ("samples per second", _value(run, "samples_per_second", _count)),
        ("mode", mode),
    ]
    for split in ("test", "valid"):
        for name in list(run.part(split))[:12]:
            if name != "samples" and run.number(f"{split}.{name}") is not None:
                tiles.append((f"{split} {text(name)}", _value(run, f"{split}.{name}", figure)))
    best = run.part("best")
    if run.number("best.value") is not None:
        value = _value(run, "best.value", figure)
        tiles.append(
            (f"best valid {text(best.get('metric'))}", f"{value} at {_value(run, 'best.step', _count)}")
        )
    parts = [f'<dl class="tiles">{"".join(f"<div><dt>{a}</dt><dd>{b}</dd></div>" for a, b in tiles)}</dl>']
    if run.part("roles"):
        parts.append(f'<p class="muted">{roles}</p>')
    if reason := run.summary.get("stop_reason"):
        parts.append(f"<p>Stopped: {text(reason)}</p>")
    if run.failure:
        who = f"Rank {text(run.failure.get('world_rank'))} failed"
        parts.append(f'<p class="bad">{who}: {text(run.failure.get("message"))}</p>')
    if not run.summary and not run.failure:
        parts.append("<p>No summary.json: the run hasn't ended, or was killed.</p>")
    parts += [f'<p class="bad">{text(problem)}</p>' for problem in run.problems]
    if run.timeline.damaged:
        parts.append(
            f'<p class="bad">{run.timeline.damaged} damaged lines of metrics.jsonl are left out.</p>'
        )
    return "".join(parts)


def _time(run: RunRecord) -> str:
    shares = spent(run)
    whole = sum(share.seconds for share in shares)
    if not whole:
        return ""
    rows = [
        (
            share.label,
            share.seconds / whole,
            _value(run, share.field, _seconds),
            f"{share.seconds / whole:.0%}",
        )
        for share in shares
    ]
    told = "".join(f"<li>{text(sentence)}</li>" for sentence in advice(run))
    return f'<div class="card">{_bars(rows)}</div><ul>{told}</ul>'


def _bars(rows: Sequence[tuple[str, float, str, str]]) -> str:
    lines = "".join(
        f'<tr><th>{escape(label)}</th><td class="b">{bar(share)}</td><td class="n">{value}</td>'
        f'<td class="n">{percent}</td></tr>'
        for label, share, value, percent in rows
    )
    return f"<table>{lines}</table>"


def _ledger(run: RunRecord) -> str:
    pulled = run.number("embedding.pulled_rows")
    if not pulled or pulled < 0:
        return ""
    rows = []
    for name in LEDGER:
        count = run.number(f"embedding.{name}") or 0.0
        shown = _value(run, f"embedding.{name}", _count)
        rows.append(
            (name.removesuffix("_rows").replace("_", " "), count / pulled, shown, f"{count / pulled:.2%}")
        )
    closes = math.isclose(
        pulled, sum(run.number(f"embedding.{name}") or 0.0 for name in LEDGER), rel_tol=1e-15
    )
    said = "the ledger closes" if closes else '<span class="bad">the ledger does not close</span>'
    tables = (
        f"<p>Tables at the end: {_value(run, 'embedding.rows', _count)} rows, "
        f"{_value(run, 'embedding.bytes', size_text)}; "
        f"{_value(run, 'embedding.evicted_rows', _count)} rows were evicted from full tables.</p>"
    )
    if run.number("embedding.to_disk_rows"):
        tables += (
            f"<p>On disk: {_value(run, 'embedding.disk_rows', _count)} of these rows, "
            f"{_value(run, 'embedding.disk_bytes', size_text)}; "
            f"{_value(run, 'embedding.to_disk_rows', _count)} went there, "
            f"{_value(run, 'embedding.from_disk_rows', _count)} came back, "
            f"{_value(run, 'embedding.disk_full_rows', _count)} found no room and were evicted.</p>"
        )
    sum_ = f"<p>Pulled: {_value(run, 'embedding.pulled_rows', _count)} rows; {said}.</p>"
    return f'<div class="card">{_bars(rows)}{sum_}{tables}</div>'


def _roles(run: RunRecord) -> str:
    cards = []
    for role in SHOWN:
        phases = run.phases(role)
        total = sum(mean for mean, _ in phases.values())
        if total <= 0:
            continue
        rows = [
            (
                phase,
                mean / total,
                _value(run, f"phase_seconds.{role}.{phase}.mean", _seconds),
                f"{mean / total:.0%}",
            )
            for phase, (mean, _) in phases.items()
        ]
        title = f"{_number_of(run, role)}: mean seconds"
        cards.append(f'<div class="card"><h3>{title}</h3>{_bars(rows)}</div>')
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


def _checkpoints(run: RunRecord) -> str:
    listed = run.checkpoints.get("checkpoints", [])
    if not listed:
        return ""
    lines = []
    for facts in listed:
        marks = [mark for mark in ("latest", "best") if facts["name"] == run.checkpoints[mark]]
        tables = facts.get("tables", {})
        rows = f"{sum(table.get('rows', 0) for table in tables.values()):,}" if "base" in facts else "–"
        holds = "–" if "base" not in facts else "changes" if facts["base"] else "all rows"
        note = text("; ".join(filter(None, [*marks, facts.get("problem", "")])))
        size = size_text(facts["bytes"])
        lines.append(
            f'<tr><th>{text(facts["name"])}</th><td>{holds}</td><td class="n">{rows}</td>'
            f'<td class="n">{size}</td><td>{note}</td></tr>'
        )
    names = '<th></th><th>holds</th><th class="n">rows</th><th class="n">size</th><th></th>'
    head = f"<thead><tr>{names}</tr></thead>"
    count = _value(run, "checkpoints.written", _count)
    seconds = _value(run, "checkpoints.write_seconds", _seconds)
    written = f"<p>Written in the last start of the run: {count}, in {seconds}, mostly beside training.</p>"
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>{written}'


def _warnings(run: RunRecord) -> str:
    lines = []
    for event in run.timeline.kinds("warning", "skip", "resume", "restore", "wait"):
        what = {
            "warning": event.get("text"),
            "skip": f"skipped: {event.get('why')}",
            "resume": "resumed from the checkpoint of this step",
            "restore": f"went back to the best evaluation, of step {event.get('restored_step')}",
            "wait": "waited for new files",
        }[event["event"]]
        lines.append(f"<li>Step {text(event.get('step'))}: {text(what)}</li>")
    left = f"<p>The last {MOST_WARNINGS} of {len(lines)}:</p>" if len(lines) > MOST_WARNINGS else ""
    return f"{left}<ul>{''.join(lines[-MOST_WARNINGS:])}</ul>" if lines else ""


def _numbers(runs: Sequence[RunRecord]) -> str:
    """Returns all of summary.json as it stands there, a column for each run."""
    columns = [dict(run.leaves()) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return ""
    head = "".join(f'<th class="n">{text(run.directory)}</th>' for run in runs)
    lines = "".join(_lines(names[:MOST_NUMBERS], columns))
    left = f"<p>The first {MOST_NUMBERS} of {len(names)}.</p>" if len(names) > MOST_NUMBERS else ""
    table = f'<table class="all"><thead><tr><th></th>{head}</tr></thead>{lines}</table>'
    return f'<details><summary>summary.json</summary>{left}<div class="wide">{table}</div></details>'


def _lines(names: Sequence[str], columns: Sequence[dict[str, Any]]) -> Iterator[str]:
    for name in names:
        cells = []
        for column in columns:
            value = column.get(name)
            shown = value if isinstance(value, str) else "–" if name not in column else _json(value)
            cells.append(f'<td class="n">{text(shown)}</td>')
        yield f"<tr><th>{text(name)}</th>{''.join(cells)}</tr>\n"


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "–"
