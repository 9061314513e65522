"""persia-hpc preprocess: turns raw data into the HDF5 format."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from persia_hpc.errors import EXIT_OK, UserError
from persia_hpc.launch.environment import inside_mpi

if TYPE_CHECKING:
    from persia_hpc.preprocess.team import Team

SUMMARY = "turn raw data into HDF5 files"
DESCRIPTION = """\
Writes the HDF5 files that training reads: from known datasets, from any CSV, TSV or Parquet files with a
short TOML schema, or made up with a known best AUC."""
EXAMPLES = """\
examples:
  persia-hpc preprocess adult --help
  persia-hpc preprocess table --help
  persia-hpc preprocess synthetic --help
  mpiexec -n 8 persia-hpc preprocess criteo --input 'day_*' --out data/criteo --shard-bytes 1GiB"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options, which the datasets know."""
    from persia_hpc.preprocess.cli import add_arguments as add

    add(parser)


def run(options: argparse.Namespace) -> int:
    """Converts; UserError for bad input, with file and line. Collective under MPI."""
    from persia_hpc.preprocess.cli import run as convert

    return convert(options, _team(options)) or EXIT_OK


def _team(options: argparse.Namespace) -> Team:
    """The ranks of this MPI job, where the work can be shared."""
    from persia_hpc.preprocess.team import ALONE, Ranks

    size = max(int(os.environ.get(name, 1)) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if getattr(options, "shard_bytes", None) is None:
        if size > 1:
            raise UserError(
                f"preprocess {options.preprocess_name} was started on {size} ranks, but only "
                "`preprocess criteo --shard-bytes` shares its work; start it without mpiexec"
            )
        return ALONE
    if not inside_mpi():
        return ALONE
    from mpi4py import MPI

    from persia_hpc.topology.groups import check_world

    check_world(MPI.COMM_WORLD)  # ranks that don't know of each other would all write the same files
    return Ranks(MPI.COMM_WORLD)
