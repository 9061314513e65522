"""What a rank runs inside MPI: `python -m mpi4py -m persia_hpc.job.rank_main --run-dir RUN`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persia_hpc.config import Config, load_config
from persia_hpc.errors import EXIT_AGAIN, AgreedExit
from persia_hpc.launch.ending import abort
from persia_hpc.launch.environment import world_rank_of
from persia_hpc.launch.registry import finish_rank, register_rank, report_failure
from persia_hpc.runtime.stop import StopSignals


def run_rank(config: Config, run_dir: Path, quiet: bool) -> dict[str, Any]:
    """Runs this rank's role to its end and returns the summary. Collective over COMM_WORLD.

    AgreedExit with EXIT_AGAIN if a signal has ended the run early. Whatever goes wrong is recorded in the run
    directory and ends the whole job with the error's exit code: an exception that only left this rank would
    leave the others waiting for ever.
    """
    with StopSignals() as stop:
        summary = _run_rank(config, run_dir, quiet, stop)
    # A supervisor knows from the summary, and launchers say less if all is well.
    if summary["status"] == "interrupted" and "PERSIA_HPC_SUPERVISED" not in os.environ:
        from mpi4py import MPI

        # All ranks are here: without the launcher's talk of aborts.
        MPI.COMM_WORLD.Barrier()
        MPI.Finalize()
        raise AgreedExit(EXIT_AGAIN)
    return summary


def _run_rank(config: Config, run_dir: Path, quiet: bool, stop: StopSignals) -> dict[str, Any]:
    known = world_rank_of()
    if known is not None:
        register_rank(run_dir, known)  # before MPI starts, which may hang or be killed as well
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    try:
        if known != rank:
            register_rank(run_dir, rank)
        from persia_hpc.api import train_rank

        summary: dict[str, Any] = train_rank(config, run_dir, stop, quiet)
    except AgreedExit:
        raise
    except BaseException as error:
        code = report_failure(run_dir, rank, None, error)
        abort(MPI.COMM_WORLD, code)
    finish_rank(run_dir, rank)
    return summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the ranks that the supervisor starts; the configuration lies in the run directory."""
    parser = argparse.ArgumentParser(prog="persia_hpc.job.rank_main")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    run_rank(load_config(options.run_dir / "config.toml"), options.run_dir, options.quiet)


if __name__ == "__main__":
    main()
