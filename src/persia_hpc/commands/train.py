"""persia-hpc train: starts and supervises a job, or, started by an MPI launcher, is one of its ranks."""

from __future__ import annotations

import argparse
from pathlib import Path

from persia_hpc.config import Config, load_config, parse_set
from persia_hpc.errors import EXIT_AGAIN, EXIT_OK, UserError
from persia_hpc.job.task import Task
from persia_hpc.launch.environment import inside_mpi, supervised, world_rank_of
from persia_hpc.launch.run_dir import claimed_run_dir, completed_message
from persia_hpc.launch.shared_memory import check_room
from persia_hpc.printable import say
from persia_hpc.runtime.imports import import_quickly

SUMMARY = "train a model as a TOML file says"
DESCRIPTION = """\
Trains a model with parameter servers, embedding workers and trainers as ranks of one MPI job. Outside MPI
this starts the job and watches over it; under mpiexec or srun it is one of the ranks."""
EXAMPLES = """\
examples:
  persia-hpc train train.toml
  persia-hpc train train.toml --set train.epochs=1 --set data.limit=10000 --run-dir runs/try
  persia-hpc train train.toml --run-dir runs/a --set checkpoint.every=1000 --resume
  persia-hpc train --run-dir runs/a --resume
  persia-hpc train train.toml --run-dir runs/a --set data.follow=true --resume
  persia-hpc train finetune.toml --init-from runs/a/latest
  persia-hpc train train.toml --dry-run
  persia-hpc train train.toml --one-process
  persia-hpc train train.toml --json | jq .loss
  mpiexec -n 4 persia-hpc train train.toml"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="TOML file (docs/configuration.md); with --resume by default the run's own",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replaces a key, for instance train.epochs=3; VALUE is TOML, or else a string",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="where results go (default: runs/<next number>)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in --run-dir, if there is one (checkpoint.resume = true)",
    )
    parser.add_argument(
        "--init-from",
        metavar="PATH",
        help="begin with the rows and weights of a checkpoint or run (checkpoint.init_from, init_parts)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, plan and memory, and try one step; writes nothing",
    )
    parser.add_argument(
        "--launcher",
        choices=("mpiexec", "srun", "none"),
        default="mpiexec",
        help="what starts the ranks; none: this process is a rank already (default: mpiexec)",
    )
    parser.add_argument(
        "--one-process",
        action="store_true",
        help="train with all roles in this process, without MPI and always in sync: small data, debugging",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    parser.add_argument(
        "--json",
        action="store_true",
        help="as --quiet, and each event of metrics.jsonl and the summary as a line of JSON on stdout",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the job and returns its exit code.

    Raises UserError for bad input, before anything is started.
    """
    config = _config(options)
    run_dir = options.run_dir or (Path(config.run_dir) if config.run_dir else None)
    if config.checkpoint.resume and run_dir is not None and (done := completed_message(run_dir, config)):
        if world_rank_of() in (None, 0):
            say(done)
        return EXIT_OK
    if options.one_process:
        return _in_one_process(config, options)
    if options.launcher == "none" or inside_mpi():
        return _be_a_rank(config, options)
    if options.dry_run:
        from persia_hpc.job.dry_run import dry_run

        print(dry_run(config))
        return EXIT_OK
    import_quickly("persia_hpc.api")
    from persia_hpc.api import check

    config = check(config, run_dir)
    from persia_hpc.launch.supervisor import supervise

    shown = ["--quiet"] * (options.quiet or options.json) + ["--json"] * options.json
    return supervise(config, options.run_dir, shown, launcher=options.launcher)


def _config(options: argparse.Namespace) -> Config:
    changes = parse_set(options.set)
    if options.resume:
        changes["checkpoint.resume"] = True
    if options.init_from is not None:
        changes["checkpoint.init_from"] = options.init_from
    source = options.config
    if source is None:
        if not options.resume or options.run_dir is None:
            raise UserError("no CONFIG: give a TOML file, or --resume and the --run-dir of a run")
        source = options.run_dir / "config.toml"
    config = load_config(source, changes)
    if config.checkpoint.resume and options.run_dir is None and config.run_dir is None:
        raise UserError("--resume needs the --run-dir of the run (or run_dir in the configuration)")
    return config


def _task(options: argparse.Namespace) -> Task:
    return Task(quiet=options.quiet or options.json, lines=options.json)


def _in_one_process(config: Config, options: argparse.Namespace) -> int:
    if inside_mpi():
        raise UserError("--one-process: this is a rank of an MPI job; start it without mpiexec or srun")
    if options.dry_run:
        raise UserError("--one-process and --dry-run: give one of them; a dry run is one process")
    import_quickly("torch")
    from persia_hpc.api import run_task

    run_dir = {} if options.run_dir is None else {"run_dir": str(options.run_dir)}
    summary = run_task(load_config(config.resolved(), run_dir), _task(options))
    return EXIT_AGAIN if summary["status"] == "interrupted" else EXIT_OK


def _be_a_rank(config: Config, options: argparse.Namespace) -> int:
    check_room()
    from mpi4py import MPI

    from persia_hpc.job.rank_main import run_rank

    world = MPI.COMM_WORLD
    if options.dry_run:
        if world.rank == 0:
            from persia_hpc.job.dry_run import dry_run

            print(dry_run(config))
        return EXIT_OK
    requested = options.run_dir or config.run_dir
    with claimed_run_dir(world, requested, resume=config.checkpoint.resume) as run_dir:
        run_rank(config, run_dir, _task(options), supervised=supervised())
    return EXIT_OK
