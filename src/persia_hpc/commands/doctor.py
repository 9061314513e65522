"""persia-hpc doctor: checks whether this machine is ready."""

from __future__ import annotations

import argparse

from persia_hpc.errors import UserError

SUMMARY = "check this installation and machine"
DESCRIPTION = """\
Checks Python, native extension, MPI, RMA, Horovod, PyTorch, GPU, huge pages, shared memory and Slurm; every
line that isn't good says the fix. Exit code 1 if training can't work: if a line says BAD. Without Horovod one
trainer can train, and several with train.reducer = "mpi"; so that is a note, unless --trainers asks for more
than one and --reducer for no other. --disk measures a directory for tables' rows (tables.NAME.disk): random
reads of 4 KiB, 1, 16 and 64 at a time, and fsync; it writes 256 MiB there for some seconds."""
EXAMPLES = """\
examples:
  persia-hpc doctor
  persia-hpc doctor --trainers 4
  persia-hpc doctor --trainers 4 --reducer mpi
  persia-hpc doctor --disk /local/nvme"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--trainers",
        type=int,
        default=1,
        metavar="N",
        help="trainers that jobs here will have (default: 1)",
    )
    parser.add_argument(
        "--reducer",
        choices=("horovod", "mpi", "nccl"),
        default="horovod",
        help="train.reducer of these jobs (default: horovod)",
    )
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="DIR",
        help="a directory for rows beyond memory, to be measured; may be given again",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the table; 1 if something that training needs is missing.

    Raises UserError for a number of trainers that no job can have.
    """
    from persia_hpc.launch.doctor import examine

    if options.trainers < 1:
        raise UserError(f"--trainers: got {options.trainers}, expected 1 or more")
    return examine(options.trainers, options.reducer, options.disk)
