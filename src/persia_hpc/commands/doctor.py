"""persia-hpc doctor: checks whether this machine is ready."""

from __future__ import annotations

import argparse
from dataclasses import replace

from persia_hpc.config import load_config, parse_set
from persia_hpc.errors import UserError

SUMMARY = "check this installation and machine"
DESCRIPTION = """\
Checks Python, native extension, MPI, one-sided Put and its time, binding to cores, clocks, Slurm and its PMI,
PyTorch, GPU, driver and nvcc, Horovod and NCCL, huge pages, shared memory, limits, and locks of the run
directory's file system; every line that isn't good says the fix. Exit code 1 if training can't work: if a
line says BAD. With a configuration it asks for what that needs: trainers, reducer, shared memory for its
rings, the disks of its tables. Without Horovod one trainer can train, and several with train.reducer =
"mpi"; so a missing one is a note, and BAD only for several trainers whose reducer it is. --srun starts two
ranks by srun, in an allocation of several nodes on two of them. --disk measures a directory for tables'
rows (tables.NAME.disk): random reads of 4 KiB, 1, 16 and 64 at a time, and fsync; it writes 256 MiB there for
some seconds."""
EXAMPLES = """\
examples:
  persia-hpc doctor
  persia-hpc doctor train.toml
  persia-hpc doctor --trainers 4 --reducer mpi --json
  salloc -N2 persia-hpc doctor train.toml --srun pmi2
  persia-hpc doctor --disk /local/nvme"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="TOML file of a job that is to run here")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="replaces a key of the configuration",
    )
    parser.add_argument(
        "--trainers",
        type=int,
        metavar="N",
        help="trainers that jobs here will have (default: the configuration's, or 1)",
    )
    parser.add_argument(
        "--reducer",
        choices=("horovod", "mpi", "nccl"),
        help="train.reducer of these jobs (default: the configuration's, or horovod)",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="where runs are to be (default: the configuration's, or runs)"
    )
    parser.add_argument(
        "--srun",
        nargs="?",
        const="",
        metavar="MPI",
        help="also start two ranks by srun, with this --mpi if there is one",
    )
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="DIR",
        help="a directory for rows beyond memory, to be measured; may be given again",
    )
    parser.add_argument("--json", action="store_true", help="prints JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the table, or JSON; 1 if something that training needs is missing.

    Raises UserError for a number of trainers that no job can have, and for a bad configuration.
    """
    from persia_hpc.launch.doctor import Wanted, examine, show, show_json

    if options.trainers is not None and options.trainers < 1:
        raise UserError(f"--trainers: got {options.trainers}, expected 1 or more")
    wanted = Wanted(srun=options.srun, disks=options.disk)
    if options.config is not None:
        from persia_hpc.job.shared_need import rings_wanted

        config = load_config(options.config, parse_set(options.settings))
        ranks, shared_bytes = rings_wanted(config)
        folders = dict.fromkeys(t.disk.path for t in config.tables.values() if t.disk is not None)
        wanted = Wanted(
            srun=options.srun,
            disks=[*folders, *options.disk],
            trainers=config.ranks.counts()["trainers"],
            reducer=config.train.reducer,
            run_dir=str(config.run_dir or "runs"),
            shared_bytes=shared_bytes,
            ranks=ranks,
        )
    elif options.settings:
        raise UserError("--set without a configuration: name the TOML file that it changes")
    given = {name: getattr(options, name) for name in ("trainers", "reducer", "run_dir")}
    wanted = replace(wanted, **{name: value for name, value in given.items() if value is not None})
    return (show_json if options.json else show)(examine(wanted))
