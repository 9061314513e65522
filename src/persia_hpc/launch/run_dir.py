"""Makes a run's directory, for one run only, and writes what every run has there from its start."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from persia_hpc.checkpoint.files import whole_checkpoints
from persia_hpc.config import Config, config_text
from persia_hpc.durable import own_file, replacing
from persia_hpc.errors import UserError
from persia_hpc.reporting.events import JsonLines
from persia_hpc.reporting.run_files import EVENTS

from .environment import inside_mpi, slurm_job_id
from .registry import read_failure, read_ranks, read_summary
from .run_lock import LOCK, locked

if TYPE_CHECKING:
    from mpi4py import MPI

LEFT_RANKS_SECONDS = 10.0  # in which they end, when their supervisor was killed
# Names of what ranks write about themselves.
_OF_RANKS = re.compile(r"\d+\.(json|alive)|\d+\.json\..*\.partial")
_LINES_BYTES = 16 << 10  # what a job writes at least before it trains


def completed_message(path: Path, config: Config) -> str:
    """Says how a run of this very configuration has ended in a run directory; "" if there is more to do.

    A run that follows files may continue after it was stopped: there may be more by now.
    """
    summary = read_summary(path) or {}
    ended = ("completed",) if config.data.follow else ("completed", "stopped")
    if summary.get("status") not in ended or summary.get("config_sha256") != config.sha256:
        return ""
    return f"{path} is {summary['status']} after {summary.get('steps')} steps: nothing to do"


@contextlib.contextmanager
def run_directory(requested: str | Path | None, *, resume: bool = False) -> Iterator[Path]:
    """Makes the run's directory and holds it, for this job alone, for the time of the context.

    It is the requested one, or runs/<next integer>, which no other run gets. With `resume` it may hold a run
    that is to continue; the files that say how that one ended are removed.

    Raises UserError if it can't be made, holds the results of another run, a run that still runs, or
    (with `resume`) no run's.
    """
    path = _next_run_dir(Path("runs")) if requested is None else Path(requested)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"can't make the run directory {path}: {reason}") from None
    check = _check_of_a_run if resume else _check_unused
    if not os.path.lexists(path / LOCK):
        check(path)  # what is refused gets no file of ours
    with locked(path):
        _check_writable(path)
        _wait_for_left_ranks(path)
        check(path)
        try:
            _make_own(path)
        except OSError as error:
            raise UserError(
                f"can't use the run directory {path}: {error.filename}: {error.strerror}"
            ) from None
        yield path


@contextlib.contextmanager
def claimed_run_dir(world: MPI.Intracomm, requested: str | Path | None, *, resume: bool) -> Iterator[Path]:
    """Makes and holds the run's directory on rank 0; gives its absolute path on every rank.

    It is held until all ranks have left the context, unless one leaves it with an error, which ends the job.

    Collective over world.
    Raises what `run_directory` raises, on every rank.
    """
    path: Path | None = None
    problem: Exception | None = None
    with contextlib.ExitStack() as stack:
        if world.rank == 0:
            try:
                # Absolute: a launcher may give ranks other current directories.
                path = Path(os.path.abspath(stack.enter_context(run_directory(requested, resume=resume))))
            except Exception as error:
                problem = error
        path, problem = world.bcast((path, problem))
        if problem is not None:
            raise problem
        assert path is not None
        yield path
        world.Barrier()


def _check_unused(path: Path) -> None:
    used = [name for name in ("summary.json", "failure.json", EVENTS) if (path / name).exists()]
    if used:
        raise UserError(
            f"{path} holds a run already (it has {used[0]}); choose another --run-dir, or --resume it"
        )
    if whole_checkpoints(path):
        raise UserError(f"{path} has checkpoints of a run already; choose another --run-dir, or --resume it")


def _check_of_a_run(path: Path) -> None:
    """Checks that what `_make_own` removes was written by a run.

    Raises UserError if not.
    """
    if (path / "config.toml").exists() or whole_checkpoints(path):
        return
    found = ["summary.json"] if os.path.lexists(path / "summary.json") else []
    if os.path.lexists(path / "failure.json") and read_failure(path) is None:
        found.append("failure.json")
    if found:
        raise UserError(
            f"{path} has a {found[0]}, but neither config.toml nor checkpoints: it is no run that can go on; "
            "choose another --run-dir"
        )


def _wait_for_left_ranks(path: Path) -> None:
    """Waits until the ranks of a supervisor that was killed have ended too.

    Raises UserError if they don't.
    """
    limit = time.monotonic() + LEFT_RANKS_SECONDS
    while not inside_mpi():  # there the ranks may be this job's own, which trains once more
        alive = [rank for rank in read_ranks(path).values() if rank.is_local and rank.is_alive()]
        alive = [rank for rank in alive if rank.pid not in (os.getpid(), os.getppid())]
        if not alive:
            return
        if time.monotonic() > limit:
            raise UserError(
                f"{path} is in use: {alive[0]} of an earlier job still runs; stop it (kill {alive[0].pid}), "
                "or choose another --run-dir"
            )
        time.sleep(0.1)


def _make_own(path: Path) -> None:
    """Removes what says how an earlier job went, and links in place of what this job will change."""
    for name in ("summary.json", "failure.json"):
        (path / name).unlink(missing_ok=True)
    for name in ("logs", "ranks"):
        folder = path / name
        if folder.is_symlink():
            folder.unlink()
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        for entry in folder.glob("*"):
            if name == "ranks" and _OF_RANKS.fullmatch(entry.name) and not entry.is_dir():
                entry.unlink()
            else:
                own_file(entry)
    job = slurm_job_id()
    if job is not None:
        with replacing(path / "slurm_job") as partial:
            partial.write_text(f"{job}\n")


def write_config(run_dir: Path, config: Config) -> None:
    """Writes the resolved configuration.

    Raises UserError if it can't be written.
    """
    with _writing(run_dir), replacing(run_dir / "config.toml") as partial:
        partial.write_text(config_text(config))


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
