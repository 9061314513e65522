"""persia-hpc report: what a run did, as a short table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persia_hpc.errors import EXIT_OK, DataError, UserError
from persia_hpc.printable import printable
from persia_hpc.reporting.run_files import EVENTS, read_bytes, read_object

SUMMARY = "what a run did, as a short table"
DESCRIPTION = """\
Prints summary.json and the last lines of metrics.jsonl of a run, also of one that still runs or failed."""
EXAMPLES = """\
example:
  persia-hpc report runs/1"""

# What most people look for; the rest of summary.json follows in its own order.
FIRST = ("status", "stop_reason", "test", "valid", "best", "steps", "samples", "samples_per_second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory, for instance runs/1")


def run(options: argparse.Namespace) -> int:
    """Prints the table.

    Raises UserError if there is no such run, DataError if any of its files is damaged, behind the rest.
    """
    directory: Path = options.run_dir
    if not os.path.exists(directory / "config.toml"):
        raise UserError(f"{directory} is not a run directory: it has no config.toml")
    lines: list[tuple[str, str]] = []
    failure, bad_failure = read_object(directory / "failure.json")
    summary, bad_summary = read_object(directory / "summary.json")
    events, bad_events = read_bytes(directory / EVENTS)
    if failure:
        lines.append(("failure", f"rank {failure.get('world_rank')}: {failure.get('message')}"))
    if summary:
        try:
            lines += _flat({**{key: summary[key] for key in FIRST if key in summary}, **summary})
        except (RecursionError, ValueError) as error:
            bad_summary = f"{directory / 'summary.json'} is damaged ({error})"
    elif not failure and not bad_summary and not bad_failure:
        lines.append(("status", "no summary.json: the run hasn't ended, or was killed"))
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(printable(f"{name:<{width}}  {value}"))
    if events is not None:
        last = events.splitlines()[-5:]
        print("\nlast metrics:" if last else "\nno metrics yet")
        for line in last:
            print("  " + printable(line.decode("utf-8", "backslashreplace")))
    problems = [each for each in (bad_failure, bad_summary, bad_events) if each is not None]
    if problems:
        sys.stdout.flush()
        raise DataError("; ".join(problems))
    return EXIT_OK


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append(
                (printable(prefix + key), f"{value:.6g}" if isinstance(value, float) else str(value))
            )
    return lines
