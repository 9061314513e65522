"""persia-hpc preprocess: turns raw data into the HDF5 format."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import TYPE_CHECKING

from persia_hpc.errors import EXIT_FAILURE, EXIT_OK, PersiaError, UserError
from persia_hpc.launch.ending import abort
from persia_hpc.launch.environment import inside_mpi

if TYPE_CHECKING:
    from persia_hpc.preprocess.team import Team

SUMMARY = "turn raw data into HDF5 files"
DESCRIPTION = """\
Writes the HDF5 files that training reads: from known datasets, from any CSV, TSV, Parquet or Arrow files with
a short TOML schema, or made up with a known best AUC."""
EXAMPLES = """\
examples:
  persia-hpc preprocess adult --help
  persia-hpc preprocess table --help
  persia-hpc preprocess synthetic --help
  mpiexec -n 8 persia-hpc preprocess criteo --input 'day_*' --out data/criteo --shard-bytes 1GiB
  mpiexec -n 8 persia-hpc preprocess table clicks.toml --out data/clicks --shard-bytes 1GiB"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options, which the datasets know."""
    from persia_hpc.preprocess.cli import add_arguments as add

    add(parser)


def run(options: argparse.Namespace) -> int:
    """Converts the data.

    Collective over COMM_WORLD, under MPI.
    Raises UserError for bad input, with file and line.
    """
    from persia_hpc.preprocess.cli import run as convert

    team = _team(options)
    try:
        return convert(options, team) or EXIT_OK
    except PersiaError:  # raised by all ranks
        raise
    except Exception:
        if team.size == 1 or not team.connected:
            raise
        from mpi4py import MPI

        # It may be this rank's alone: the others would wait for it.
        traceback.print_exc()
        sys.stderr.flush()
        abort(MPI.COMM_WORLD, EXIT_FAILURE)


def _team(options: argparse.Namespace) -> Team:
    """The ranks of this MPI job, where the work can be shared; or the part that the options ask for."""
    from persia_hpc.preprocess.cli import shares_work
    from persia_hpc.preprocess.team import ONE_MEMBER, Ranks

    size = max(int(os.environ.get(name, 1)) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    part: Team | None = getattr(options, "part", None)
    if not shares_work(options):
        if size > 1 or part is not None:
            got = "with --part" if part is not None else f"on {size} ranks"
            raise UserError(
                f"preprocess {options.preprocess_name} was started {got}, but it shares its "
                "work only with --shard-bytes, if at all; start it alone, or with --shard-bytes"
            )
        return ONE_MEMBER
    if part is not None:
        if size > 1:
            raise UserError(f"--part: got it on {size} ranks, which share the work anyway; leave it out")
        return part
    if not inside_mpi():
        return ONE_MEMBER
    from mpi4py import MPI

    from persia_hpc.topology.communicators import check_world

    check_world(MPI.COMM_WORLD)  # ranks that don't know of each other would all write the same files
    return Ranks(MPI.COMM_WORLD)
