"""persia-hpc importance: which features a finished run relies on."""

from __future__ import annotations

import argparse
import json
from typing import Any

from persia_hpc.config import parse_set
from persia_hpc.errors import EXIT_OK
from persia_hpc.reporting.figures import figure
from persia_hpc.runtime.imports import import_quickly

from . import evaluate

SUMMARY = "which features a run relies on, by permuting their values"
DESCRIPTION = """\
Loads a checkpoint as `evaluate` does, looks the samples of a split up once, and says by how much a metric
gets worse when the values of one feature are permuted among the samples: the permutation importance. The
features of a sequence are permuted together. One process, no MPI."""
EXAMPLES = """\
examples:
  persia-hpc importance runs/1
  persia-hpc importance runs/1 --split valid --samples 0 --repeats 5
  persia-hpc importance runs/1 --metric logloss --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    evaluate.add_arguments(parser)
    parser.add_argument(
        "--metric", help="one that evaluations report (default: that which the run watches, else auc)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only these features, sequences, dense columns"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=100_000,
        help="how many, drawn at random in blocks; 0: all (default: 100000)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="permutations of each feature (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of samples and permutations (default: 1)")
    parser.add_argument("--json", action="store_true", help="prints JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the importances; UserError if the run, the split or the metric doesn't exist."""
    changes = parse_set(options.set)
    import_quickly("torch")
    from pathlib import Path

    from persia_hpc.job.loaded_run import LoadedRun

    found = LoadedRun(Path(options.run_dir), changes, trust=options.trust).importance(
        options.split,
        samples=options.samples,
        repeats=options.repeats,
        seed=options.seed,
        metric=options.metric,
        only=options.only,
    )
    print(json.dumps(found) if options.json else "\n".join(table(found)))
    return EXIT_OK


def table(found: dict[str, Any]) -> list[str]:
    """Returns the lines of a table, the most important feature first."""
    metric, worse = found["metric"], "lower" if found["mode"] == "max" else "higher"
    repeats = f"{found['repeats']} permutation{'s' if found['repeats'] > 1 else ''} of each feature"
    base = f"{metric} {figure(found['value'])} on {found['samples']:,} samples"
    lines = [f"{found['split']}: {base}; {repeats}"]
    rows = [("feature", "kind", f"{metric} {worse} by", "sd")]
    rows += [
        (
            entry["name"],
            entry["kind"],
            f"{entry['drop']:.5f}",
            "-" if entry["std"] is None else f"{entry['std']:.5f}",
        )
        for entry in found["features"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, kind, drop, spread in rows:
        lines.append(f"{name:{widths[0]}}  {kind:{widths[1]}}  {drop:>{widths[2]}}  {spread:>{widths[3]}}")
    return lines
