"""Runs a rank inside MPI: `python -m mpi4py -m persia_hpc.job.rank_main --run-dir RUN`, or the like."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persia_hpc.config import Config, load_config
from persia_hpc.errors import EXIT_AGAIN, AgreedExit, UserError
from persia_hpc.launch.ending import abort
from persia_hpc.launch.environment import keep_to_loopback, let_threads_sleep, supervised, world_rank_of
from persia_hpc.launch.registry import finish_rank, register_rank, report_failure, start_log
from persia_hpc.launch.shared_memory import check_room
from persia_hpc.runtime.imports import import_quickly
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.user_objects import named_code

from .task import Task


def run_rank(config: Config, run_dir: Path, task: Task, *, supervised: bool) -> dict[str, Any]:
    """Runs this rank's role to its end and returns the summary.

    Whatever goes wrong is recorded in the run directory and ends the whole job with the error's exit code: an
    exception that only left this rank would leave the others waiting for ever.

    Collective over COMM_WORLD.
    Raises AgreedExit with EXIT_AGAIN if a signal has ended the run early.
    """
    with StopSignals() as stop:
        summary = _run_rank(config, run_dir, task, stop, supervised)
    # A supervisor knows from the summary, and launchers say less if all is well.
    if summary["status"] == "interrupted" and not supervised:
        from mpi4py import MPI

        # All ranks are here: without the launcher's talk of aborts.
        MPI.COMM_WORLD.Barrier()
        MPI.Finalize()
        raise AgreedExit(EXIT_AGAIN)
    return summary


def _run_rank(
    config: Config, run_dir: Path, task: Task, stop: StopSignals, supervised: bool
) -> dict[str, Any]:
    known = world_rank_of()
    if known is not None:
        register_rank(run_dir, known)  # before MPI starts, which may hang or be killed as well
    try:
        check_room()
    except UserError as error:
        start_log(run_dir, known or 0)
        sys.exit(report_failure(run_dir, known or 0, None, error, supervised=supervised))
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    try:
        import_quickly("persia_hpc.job.rank")
        from .rank import StartingRank, play_role

        config = dataclasses.replace(config, run_dir=str(run_dir))
        task = dataclasses.replace(task, built_in=not named_code(config))
        summary = play_role(StartingRank(config, run_dir, stop=stop, supervised=supervised), task)
    except AgreedExit:
        raise
    except BaseException as error:
        code = report_failure(run_dir, rank, None, error, supervised=supervised)
        abort(MPI.COMM_WORLD, code)
    finish_rank(run_dir, rank)
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts a rank for the supervisor; the configuration lies in the run directory."""
    parser = argparse.ArgumentParser(prog="persia_hpc.job.rank_main")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    keep_to_loopback()
    let_threads_sleep()
    config = load_config(options.run_dir / "config.toml")
    run_rank(config, options.run_dir, Task(quiet=options.quiet, lines=options.json), supervised=supervised())


if __name__ == "__main__":
    main()
