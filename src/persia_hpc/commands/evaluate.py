"""persia-hpc evaluate: metrics of a finished run on one of its splits."""

from __future__ import annotations

import argparse
import json

from persia_hpc.config import parse_set
from persia_hpc.errors import EXIT_OK
from persia_hpc.runtime.imports import import_quickly

SUMMARY = "metrics of a run on one of its splits"
DESCRIPTION = """\
Loads a checkpoint and prints its metrics on a split as JSON. Of a run directory that is the best checkpoint
if one is kept (train.keep_best), else the latest. One process, no MPI."""
EXAMPLES = """\
examples:
  persia-hpc evaluate runs/1
  persia-hpc evaluate runs/1/latest --split valid
  persia-hpc evaluate runs/1 --set data.test=other.h5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options, which `importance` has too."""
    parser.add_argument("run_dir", metavar="RUN", help="run directory or checkpoint, for instance runs/1")
    parser.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="which data (default: test)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replaces a key of the run's configuration",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Declares the option of all commands that import what a run names."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the model and other code that the run names, although it is another user's run",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the metrics; UserError if the run or the split doesn't exist."""
    changes = parse_set(options.set)
    import_quickly("torch")
    from persia_hpc import api

    print(json.dumps(api.evaluate(options.run_dir, options.split, changes, trust=options.trust)))
    return EXIT_OK
