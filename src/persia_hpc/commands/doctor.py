"""persia-hpc doctor: checks whether this machine is ready."""

from __future__ import annotations

import argparse

SUMMARY = "check this installation and machine"
DESCRIPTION = """\
Checks Python, native extension, MPI, RMA, Horovod, PyTorch, GPU, huge pages, shared memory and Slurm; every
line that isn't good says the fix. Exit code 1 if training can't work."""
EXAMPLES = """\
example:
  persia-hpc doctor"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares nothing: there are no options."""
    del parser


def run(options: argparse.Namespace) -> int:
    """Prints the table; 1 if something that training needs is missing."""
    del options
    from persia_hpc.launch.doctor import examine

    return examine()
