"""The public functions, inside MPI and in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persia_hpc.reporting.events import JsonLines, MetricLogger

from .callbacks import Callback
from .checkpoint.files import discard_partial, make_newest, whole_checkpoints
from .config import Config, config_text, load_config
from .errors import TrainingEndedError
from .job.facts import facts_of_sources
from .job.resume import first_sound_checkpoint, load_start
from .job.sources import open_sources
from .launch.environment import inside_mpi, make_run_dir
from .reporting.screen import Screen, summary_text
from .reporting.summary import make_summary, write_json
from .reporting.trace import write_trace
from .runtime.stop import StopSignals
from .samples.schema import DatasetSchema

if TYPE_CHECKING:
    from .trainer.session import Session

Body = Callable[["Session"], None]
ConfigLike = str | Path | Mapping[str, Any] | Config


def check(config: Config, run_dir: Path | None = None) -> Config:
    """Raises UserError for what is known before a job starts: data files, features, tables, capacities, and
    whether the checkpoint fits that it goes on from.
    """
    facts_of_sources(config, open_sources(config, run_dir)).check_newest_checkpoint(run_dir)
    return config


def _config(source: ConfigLike, set: Mapping[str, Any] | None) -> Config:
    return (
        source
        if isinstance(source, Config) and not set
        else load_config(source.resolved() if isinstance(source, Config) else source, set)
    )


def train(
    config: ConfigLike,
    *,
    set: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[MetricLogger] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains as the configuration says; returns the summary (what summary.json holds) on every rank.

    config: path of a TOML file, a mapping of the same shape, or a Config; `set` overrides keys, for
    instance {"train.epochs": 1}.
    Under mpiexec this is collective over COMM_WORLD and takes this rank's role; elsewhere all roles run in
    this process. `quiet`: nothing on the screen. Raises UserError for bad input, before any rank starts to
    train.
    """
    return _launch(_config(config, set), None, callbacks, loggers, quiet)


def run(
    config: ConfigLike, main: Body, *, set: Mapping[str, Any] | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Like `train`, with the user's own loop: `main(session)` is called on trainers only."""
    return _launch(_config(config, set), main, (), (), quiet)


def train_rank(config: Config, run_dir: Path, stop: StopSignals, quiet: bool = False) -> dict[str, Any]:
    """This rank's role in a job that `persia-hpc train` has started. Collective over COMM_WORLD."""
    return _play(dataclasses.replace(config, run_dir=str(run_dir)), None, (), (), quiet, stop)


def _launch(
    config: Config,
    main: Body | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[MetricLogger],
    quiet: bool,
) -> dict[str, Any]:
    with StopSignals() as stop:
        return _play(config, main, callbacks, loggers, quiet, stop)


def _play(
    config: Config,
    main: Body | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[MetricLogger],
    quiet: bool,
    stop: StopSignals,
) -> dict[str, Any]:
    if not inside_mpi():
        return _run_local(config, main, callbacks, loggers, quiet, stop)
    from .job.rank import RankJob

    job = RankJob(config, quiet=quiet, stop=stop)
    try:
        return job.run(main, callbacks, loggers)
    except BaseException as error:  # leaving only this rank would leave the others waiting for ever
        job.fail(error)


def trainer_part(
    session: Session,
    main: Body | None,
    driver: Any,
    run_dir: Path,
    schema: DatasetSchema,
    num_samples: Mapping[str, int],
) -> dict[str, Any]:
    """Trains, writes the last checkpoint; returns what the summary needs of a trainer. Collective over
    trainers.
    """
    from .trainer.saving import Saver

    session.saver = Saver(session, run_dir, schema, num_samples)
    if main is not None:
        with contextlib.suppress(TrainingEndedError):
            main(session)
    else:
        driver.run(session)
    if not session.drained:
        text = "no checkpoint is written: the loop over session.batches was left before its end"
        print(f"persia-hpc: {text}", file=sys.stderr, flush=True)
    elif session.config.train.save and session.step_number and session.model is not None:
        # What stays of a run stands for itself; in a hurry the changes will do.
        session.save(full=session.interrupted is None)
    session.close()
    return {
        "steps": session.step_number,
        "samples": session.samples,
        "first_step": session.first_step,
        "first_samples": session.first_samples,
        "stop_reason": session.stop_reason,
        "interrupted": session.interrupted is not None,
        "evaluate_seconds": session.evaluate_seconds,
        "checkpoints": session.saver.statistics() if session.saver is not None else {},
        "results": session.results,
        "follow": session.following.statistics() if session.following is not None else None,
        "steady": session.pace.steady(),
        "wait": session.wait_seconds(),
        **session.phases.statistics(),
    }


def _run_local(
    config: Config,
    main: Body | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[MetricLogger],
    quiet: bool,
    stop: StopSignals,
) -> dict[str, Any]:
    import torch

    from .job.local_stream import LocalStream, local_server
    from .job.training import make_session
    from .trainer.batch import make_inputs
    from .trainer.device import choose_device
    from .trainer.driver import Driver
    from .trainer.following import Following
    from .trainer.saving import DenseState, dense_states

    sources = open_sources(config, config.run_dir)
    facts = facts_of_sources(config, sources)
    facts.check_newest_checkpoint(config.run_dir)
    run_dir = make_run_dir(config.run_dir, resume=config.checkpoint.resume)
    jsonl = start_run_dir(config, run_dir)
    inputs = make_inputs(facts.layout, facts.schema)
    screen = [] if quiet else [Screen()]
    driver = None if main is not None else Driver(config, inputs, callbacks, [jsonl, *screen, *loggers])
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)

    def prepare(
        path: Path | None,
    ) -> tuple[LocalStream, Following | None, DenseState | None, DenseState | None]:
        if path is not None:
            facts.check_checkpoint(path)
        stream = LocalStream(facts, sources, local_server(facts), stop)
        load_start(stream.server, config, path)
        following = None
        if config.data.follow:
            following = Following(config, facts.schema, facts.schedules["train"], path, trainer_rank=0)
        return stream, following, *dense_states(config, path, driver.model if driver is not None else None)

    def say(text: str) -> None:
        print(f"persia-hpc: {text}", file=sys.stderr, flush=True)

    found = []
    if config.checkpoint.resume:
        discard_partial(run_dir)
        found = whole_checkpoints(run_dir)
    stream, following, resume, initial = first_sound_checkpoint(found, prepare, say, make_newest)
    session = make_session(
        facts,
        stream,
        device=choose_device(config.train.device, local_rank=0),
        resume=resume,
        initial=initial,
        following=following,
    )
    trainer = trainer_part(session, main, driver, run_dir, facts.schema, facts.num_samples)
    summary = make_summary(
        config,
        roles={"parameter_servers": 1, "embedding_workers": 1, "trainers": 1},
        trainer=trainer,
        servers=[stream.server.statistics()],
        workers=[{"first_pull": stream.first_pull}],
        waits={"trainer": [trainer["wait"]]},
        phases={"trainer": [trainer["phases"]]},
        mpi_library="none (one process)",
    )
    summary["run_dir"] = str(run_dir)
    write_trace(run_dir, [("one process", trainer["intervals"])], [0.0], config)
    write_json(run_dir / "summary.json", summary)
    if driver is not None:
        driver.finish(summary)
    jsonl.close()
    if not quiet:
        print(summary_text(summary), file=sys.stderr)
    return summary


def start_run_dir(config: Config, run_dir: Path) -> JsonLines:
    """Writes the resolved configuration and opens metrics.jsonl."""
    (run_dir / "config.toml").write_text(config_text(config))
    return JsonLines(run_dir / "metrics.jsonl")


def load(path: str | Path) -> Any:
    """Opens a checkpoint (`runs/1/latest`) or a run directory without MPI; see `inference.LoadedRun`."""
    from .job.loaded_run import LoadedRun

    return LoadedRun(Path(path))


def evaluate(run: str, split: str = "test", set: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Metrics of a run's last checkpoint on one of its splits, in this process."""
    from .job.loaded_run import LoadedRun

    return LoadedRun(Path(run), set).evaluate(split)


def predict(run: str, data: Sequence[str], out: str) -> int:
    """Writes the probability of each sample of `data` (HDF5 globs) to `out` (.h5 or .csv); returns the rows
    written.
    """
    from .job.loaded_run import LoadedRun

    return LoadedRun(Path(run)).predict(list(data), Path(out))
