"""persia-hpc preprocess: turns raw data into the HDF5 format."""

from __future__ import annotations

import argparse

from persia_hpc.errors import EXIT_OK

SUMMARY = "turn raw data into HDF5 files"
DESCRIPTION = """\
Writes the HDF5 files that training reads: from known datasets, from any CSV, TSV or Parquet files with a
short TOML schema, or made up with a known best AUC."""
EXAMPLES = """\
examples:
  persia-hpc preprocess adult --help
  persia-hpc preprocess table --help
  persia-hpc preprocess synthetic --help"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options, which the datasets know."""
    from persia_hpc.preprocess.cli import add_arguments as add

    add(parser)


def run(options: argparse.Namespace) -> int:
    """Converts; UserError for bad input, with file and line."""
    from persia_hpc.preprocess.cli import run as convert

    return convert(options) or EXIT_OK
