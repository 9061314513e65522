"""Makes a run's directory, for one run only, and writes what every run has there from its start."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.config import Config, config_text
from persia_hpc.errors import UserError
from persia_hpc.reporting.events import JsonLines

from .environment import inside_mpi
from .registry import read_ranks, read_summary

if TYPE_CHECKING:
    from mpi4py import MPI

EVENTS = "metrics.jsonl"
_LINES_BYTES = 16 << 10  # what a job writes at least before it trains


def completed_message(path: Path, config: Config) -> str:
    """Says how a run of this very configuration has ended in a run directory; "" if there is more to do.

    A run that follows files may continue after it was stopped: there may be more by now.
    """
    summary = read_summary(path) or {}
    ended = ("completed",) if config.data.follow else ("completed", "stopped")
    if summary.get("status") not in ended or summary.get("config_sha256") != config.sha256:
        return ""
    return f"{path} is {summary['status']} after {summary['steps']} steps: nothing to do"


def make_run_dir(requested: str | Path | None, *, resume: bool = False) -> Path:
    """Makes the run's directory: the requested one, or runs/<next integer>, which no other run gets.

    With `resume` it may hold a run that is to continue; the files that say how that one ended are removed.
    Raises UserError if it can't be made, holds the results of another run, or a run that still runs.
    """
    if requested is None:
        return _next_run_dir(Path("runs"))
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
        with _writing(path):
            for name in ("summary.json", "failure.json"):
                (path / name).unlink(missing_ok=True)
        return path
    used = [name for name in ("summary.json", "failure.json", EVENTS) if (path / name).exists()]
    if used:
        raise UserError(
            f"{path} holds a run already (it has {used[0]}); choose another --run-dir, or --resume it"
        )
    if whole_checkpoints(path):
        raise UserError(f"{path} has checkpoints of a run already; choose another --run-dir, or --resume it")
    return path


def claim_run_dir(world: MPI.Intracomm, requested: str | Path | None, *, resume: bool) -> Path:
    """Makes the run's directory on rank 0; returns its absolute path on every rank.

    Collective over world.
    Raises what `make_run_dir` raises, on every rank.
    """
    path: Path | None = None
    problem: Exception | None = None
    if world.rank == 0:
        try:
            # Absolute: a launcher may give ranks other current directories.
            path = Path(os.path.abspath(make_run_dir(requested, resume=resume)))
        except Exception as error:
            problem = error
    path, problem = world.bcast((path, problem))
    if problem is not None:
        raise problem
    assert path is not None
    return path


def write_config(run_dir: Path, config: Config) -> None:
    """Writes the resolved configuration.

    Raises UserError if it can't be written.
    """
    with _writing(run_dir):
        (run_dir / "config.toml").write_text(config_text(config))


def begin_run(run_dir: Path, config: Config, events: JsonLines | None) -> None:
    """Marks the directory as one of a run: writes the configuration and opens the file of events.

    Raises UserError if they can't be written.
    """
    write_config(run_dir, config)
    if events is not None:
        with _writing(run_dir):
            events.open()


def _next_run_dir(runs: Path) -> Path:
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
    """Checks that a directory takes a file, and that its file system has room for a few lines.

    Raises UserError if not.
    """
    with _writing(run_dir), tempfile.TemporaryFile(dir=run_dir, buffering=0) as file:
        file.write(bytes(_LINES_BYTES))


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    """Raises UserError, which names the directory, for an OSError inside of it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't write into the run directory {run_dir}: {error.strerror}; make room or choose another "
            "--run-dir"
        ) from None
