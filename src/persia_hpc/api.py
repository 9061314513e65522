"""Provides the public functions, inside MPI and in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callbacks import Callback
from .config import Config, load_config
from .job.facts import facts_of_sources
from .job.sources import open_sources
from .job.task import Task
from .launch.environment import inside_mpi, keep_to_loopback, let_threads_sleep
from .launch.shared_memory import check_room
from .reporting.events import MetricLogger
from .runtime.stop import StopSignals

if TYPE_CHECKING:
    from .job.loaded_run import LoadedRun
    from .trainer.session import Session

ConfigLike = str | Path | Mapping[str, Any] | Config


def check(config: Config, run_dir: Path | None = None) -> Config:
    """Checks what is known before a job starts: data files, features, tables and capacities.

    Also checks whether the checkpoint fits from which the run continues.

    Raises UserError for what doesn't fit.
    """
    facts_of_sources(
        config, open_sources(config, run_dir), identify=config.checkpoint.resume
    ).check_newest_checkpoint(run_dir)
    return config


def train(
    config: ConfigLike,
    *,
    set: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[MetricLogger] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains as the configuration says; returns the summary (what summary.json holds) on every rank.

    config: path of a TOML file, a mapping of the same shape, or a Config.
    set: keys to override, for instance {"train.epochs": 1}.
    quiet: show nothing on the screen.
    Under mpiexec each rank takes its role; elsewhere all roles run in this process.

    Collective over COMM_WORLD, under mpiexec.
    Raises UserError for bad input, before any rank starts to train.
    """
    return run_task(_config(config, set), Task(None, callbacks, loggers, quiet))


def run(
    config: ConfigLike,
    main: Callable[[Session], None],
    *,
    set: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs the user's own loop instead of that of `train`: `main(session)` is called on trainers only."""
    return run_task(_config(config, set), Task(main, quiet=quiet))


def load(path: str | Path, *, trust: bool = False) -> LoadedRun:
    """Opens a checkpoint (`runs/1/latest`), or of a run directory its best or latest one, without MPI.

    Returns a `job.loaded_run.LoadedRun`.
    trust: the code that the run names, such as its model, may be imported although it is another user's run.
    """
    from .job.loaded_run import LoadedRun

    return LoadedRun(Path(path), trust=trust)


def evaluate(
    run: str, split: str = "test", set: Mapping[str, Any] | None = None, *, trust: bool = False
) -> dict[str, Any]:
    """Returns metrics of a checkpoint (see `load`) on one of its splits, in this process."""
    from .job.loaded_run import LoadedRun

    return LoadedRun(Path(run), set, trust=trust).evaluate(split)


def predict(
    run: str,
    data: Sequence[str],
    out: str,
    *,
    columns: Sequence[str] = (),
    schema: str | None = None,
    trust: bool = False,
) -> int:
    """Writes the probability of each sample of `data` (globs) to `out`; returns the number of rows.

    The name `out` ends in .h5, .csv or .parquet. columns: see `LoadedRun.predict`.
    schema: what the columns of Parquet files are, in place of the run's `data.schema`.
    """
    from .job.loaded_run import LoadedRun

    changes = None if schema is None else {"data.schema": schema}
    return LoadedRun(Path(run), changes, trust=trust).predict(list(data), Path(out), columns)


def _config(source: ConfigLike, set: Mapping[str, Any] | None) -> Config:
    if isinstance(source, Config):
        return load_config(source.resolved(), set) if set else source
    return load_config(source, set)


def run_task(config: Config, task: Task) -> dict[str, Any]:
    """Trains as the task says; see `train`."""
    let_threads_sleep()
    with StopSignals() as stop:
        if inside_mpi():
            keep_to_loopback()
            check_room()
            from .job.rank import run_in_mpi

            return run_in_mpi(config, task, stop)
        from .job.one_process import run_in_one_process

        return run_in_one_process(config, task, stop)
