"""persia-hpc predict: scores the samples of data files with a finished run."""

from __future__ import annotations

import argparse

from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.runtime.imports import import_quickly

from .evaluate import add_trust

SUMMARY = "score the samples of data files"
DESCRIPTION = """\
Loads a checkpoint and writes one row of predictions per sample, in the order of the files. Of a run directory
that is the best checkpoint if one is kept (train.keep_best), else the latest.
Ids that training never saw count as zeros. One process, no MPI."""
EXAMPLES = """\
examples:
  persia-hpc predict runs/1 --data new.h5 --out scores.csv
  persia-hpc predict runs/1/latest --data 'day-*.h5' more.h5 --out scores.h5
  persia-hpc predict runs/1 --data day_9.parquet --schema clicks.toml --out scores.csv
  persia-hpc predict runs/1 --data new.h5 --columns user item time --out scores.parquet"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run_dir", metavar="RUN", help="run directory or checkpoint, for instance runs/1")
    parser.add_argument("--data", metavar="FILE", nargs="+", required=True, help="files or patterns")
    parser.add_argument(
        "--schema", metavar="FILE", help="data.schema, for Parquet files (default: the one of the run)"
    )
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="what to write: a .csv, .h5 or .parquet file"
    )
    parser.add_argument(
        "--columns",
        metavar="NAME",
        nargs="+",
        default=[],
        help="beside the predictions: ids of these features, group, time",
    )
    add_trust(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the predictions.

    Raises UserError for bad input.
    """
    if not options.out.endswith((".csv", ".h5", ".hdf5", ".parquet")):
        raise UserError(f"--out {options.out}: expected a name that ends in .csv, .h5 or .parquet")
    import_quickly("torch")
    from persia_hpc import api

    rows = api.predict(
        options.run_dir,
        options.data,
        options.out,
        columns=options.columns,
        schema=options.schema,
        trust=options.trust,
    )
    print(f"{rows} rows written to {options.out}")
    return EXIT_OK
