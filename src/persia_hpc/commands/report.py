"""persia-hpc report: what a run did, as a short table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persia_hpc.errors import EXIT_OK, UserError

SUMMARY = "what a run did, as a short table"
DESCRIPTION = """\
Prints summary.json and the last lines of metrics.jsonl of a run, also of one that still runs or failed."""
EXAMPLES = """\
example:
  persia-hpc report runs/1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory, for instance runs/1")


def run(options: argparse.Namespace) -> int:
    """Prints the table.

    Raises UserError if there is no such run.
    """
    directory: Path = options.run_dir
    if not (directory / "config.toml").exists():
        raise UserError(f"{directory} is not a run directory: it has no config.toml")
    lines = []
    failure = _read(directory / "failure.json")
    if failure:
        lines.append(("failure", f"rank {failure.get('world_rank')}: {failure.get('message')}"))
    summary = _read(directory / "summary.json")
    if summary:
        lines += _flat(summary)
    elif not failure:
        lines.append(("status", "no summary.json: the run hasn't ended, or was killed"))
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    metrics = directory / "metrics.jsonl"
    if metrics.exists():
        last = metrics.read_text().splitlines()[-5:]
        print("\nlast metrics:" if last else "\nno metrics yet")
        for line in last:
            print("  " + line)
    return EXIT_OK


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    return values if isinstance(values, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append((prefix + key, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return lines
