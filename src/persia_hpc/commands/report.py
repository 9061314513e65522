"""persia-hpc report: what a run did, as a short table or as a page with charts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persia_hpc.durable import replacing
from persia_hpc.errors import EXIT_OK, DataError, UserError
from persia_hpc.printable import printable
from persia_hpc.reporting.run_files import EVENTS, read_bytes, read_object
from persia_hpc.reporting.seeds import seed_runs, summarise

SUMMARY = "what a run did, as a short table or as a page with charts"
DESCRIPTION = """\
Prints summary.json and the last lines of metrics.jsonl of a run, also of one that still runs or failed. With
--html it writes a page instead, with charts and with what to change: one file that needs no network. Of a
directory with the runs of several seeds (`submit --seeds`) it prints mean and standard deviation of what they
reached."""
EXAMPLES = """\
examples:
  persia-hpc report runs/1
  persia-hpc report runs/1 --html report.html
  persia-hpc report runs/1 runs/2 --html both.html
  persia-hpc report runs/job-4711"""

# What most people look for; the rest of summary.json follows in its own order.
FIRST = ("status", "stop_reason", "test", "valid", "best", "steps", "samples", "samples_per_second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory, for instance runs/1")
    parser.add_argument("other", metavar="RUN2", type=Path, nargs="?", help="with --html: a run to compare")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")


def run(options: argparse.Namespace) -> int:
    """Prints the table, or writes the page.

    Raises UserError if there is no such run, DataError if any of its files is damaged, behind the rest.
    """
    runs = [options.run_dir, *([] if options.other is None else [options.other])]
    if options.html is not None:
        return _write_page(runs, options.html)
    if options.other is not None:
        raise UserError(f"RUN2 {options.other} without --html: two runs are compared on a page; name a file")
    return _print_table(options.run_dir)


def _write_page(runs: Sequence[Path], path: Path) -> int:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--html {path}: expected the name of a file in a directory that exists")
    from persia_hpc.reporting.page import html_page
    from persia_hpc.reporting.run_record import RunRecord

    records = [RunRecord(directory) for directory in runs]
    page = html_page(records)
    try:
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path} can't be written: {error.strerror}; name a file elsewhere") from None
    print(printable(f"wrote {path}"), flush=True)
    if problems := [problem for record in records for problem in record.problems]:
        raise DataError("; ".join(problems))
    return EXIT_OK


def _print_table(directory: Path) -> int:
    if not os.path.exists(directory / "config.toml"):
        if runs := seed_runs(directory):
            return _print_seeds(runs)
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


def _print_seeds(runs: Mapping[int, Path]) -> int:
    summary = summarise(runs)
    print("\n".join(map(printable, summary.lines())), flush=True)
    if summary.problems:
        raise DataError("; ".join(summary.problems))
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
