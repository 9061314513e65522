"""Where this process runs: as a rank of an MPI job or not, and in which run directory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.config import Config
from persia_hpc.errors import UserError

from .registry import finish_rank, read_ranks, read_summary, register_rank, write_failure

__all__ = [
    "completed_message",
    "finish_rank",
    "inside_mpi",
    "make_run_dir",
    "register_rank",
    "world_rank_of",
    "write_failure",
]

_LINES_BYTES = 16 << 10  # what a job writes at least before it trains
# Set by a launcher in every rank; SLURM_* need more care.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def inside_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as a rank.

    A batch script and an interactive step of one task (`srun --pty bash`) have SLURM_PROCID too: only a step
    of several tasks counts.
    """
    if any(name in environment for name in _RANK_VARIABLES):
        return True
    in_step = environment.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environment
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return in_step and tasks.isdigit() and int(tasks) > 1


def world_rank_of(environment: Mapping[str, str] = os.environ) -> int | None:
    """The rank that the launcher gave this process, before MPI is started."""
    for name in (*_RANK_VARIABLES, "SLURM_PROCID"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def completed_message(path: Path, config: Config) -> str:
    """Says how a run of this very configuration has ended in a run directory; "" if it hasn't, or in order to
    go on, as one that follows files may when it was stopped: there may be more by now.
    """
    summary = read_summary(path) or {}
    ended = ("completed",) if config.data.follow else ("completed", "stopped")
    if summary.get("status") not in ended or summary.get("config_sha256") != config.sha256:
        return ""
    return f"{path} is {summary['status']} after {summary['steps']} steps: nothing to do"


def make_run_dir(requested: str | Path | None, *, resume: bool = False) -> Path:
    """The run's directory, made now: the requested one, or runs/<next integer>, which no other run gets.

    With `resume` it may hold a run that is to go on; how that one ended is removed. UserError if it can't be
    made, holds the results of a run otherwise, or a run that is still going on.
    """
    if requested is not None:
        path = Path(requested)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the run directory {path}: {error.strerror}") from None
        _check_writable(path)
        alive = [rank for rank in read_ranks(path).values() if rank.is_local and rank.is_alive()]
        if any(rank.pid not in (os.getpid(), os.getppid()) for rank in alive) and not inside_mpi():
            raise UserError(
                f"{path} is in use: {alive[0]} of a running job; stop it, or choose another --run-dir"
            )
        if resume:
            if "PERSIA_HPC_SUPERVISED" not in os.environ:  # else the supervisor has done it
                for name in ("summary.json", "failure.json"):
                    (path / name).unlink(missing_ok=True)
            return path
        used = [name for name in ("summary.json", "failure.json", "metrics.jsonl") if (path / name).exists()]
        if used:
            raise UserError(
                f"{path} holds a run already (it has {used[0]}); choose another --run-dir, or --resume it"
            )
        if whole_checkpoints(path):
            raise UserError(
                f"{path} has checkpoints of a run already; choose another --run-dir, or --resume it"
            )
        return path
    runs = Path("runs")
    try:
        runs.mkdir(exist_ok=True)
        number = max((int(p.name) for p in runs.iterdir() if p.name.isdigit()), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):
                (runs / str(number)).mkdir()
                return runs / str(number)
    except OSError as error:
        raise UserError(
            f"can't make a run directory in {runs.absolute()}: {error.strerror}; use --run-dir"
        ) from None


def _check_writable(run_dir: Path) -> None:
    """UserError for a directory that takes no file, or a file system without room for a few lines."""
    try:
        with tempfile.TemporaryFile(dir=run_dir, buffering=0) as file:
            file.write(bytes(_LINES_BYTES))
    except OSError as error:
        raise UserError(
            f"can't write into the run directory {run_dir}: {error.strerror}; make room or choose another "
            "--run-dir"
        ) from None
