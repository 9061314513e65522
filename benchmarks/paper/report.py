"""What an experiment leaves: a table in Markdown, all figures as JSON, and a plot if matplotlib is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persia_hpc.bench.measure import machine


@dataclass(frozen=True)
class Report:
    """`plot` draws on the figure that it is given."""

    text: str
    figures: Any
    plot: Callable[[Any], None] | None = None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def save(report: Report, stem: Path) -> None:
    """Writes `stem`.md, .json and .png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(report.text + "\n")
    kept = {"schema_version": 1, "machine": machine(), "results": report.figures}
    stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    if report.plot is None:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no plot: pip install matplotlib, then the figures of {stem.with_suffix('.json')} get one")
        return
    figure = Figure(layout="constrained")
    report.plot(figure)
    figure.savefig(stem.with_suffix(".png"))
