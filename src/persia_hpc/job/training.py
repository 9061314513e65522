"""Prepares and runs a trainer in any kind of job; the only place that builds a `Session`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from persia_hpc.checkpoint.choose import say_choice
from persia_hpc.checkpoint.foreign import foreign_source
from persia_hpc.errors import TrainingEndedError
from persia_hpc.printable import say
from persia_hpc.reporting.events import JsonLines, JsonStream, MetricLogger
from persia_hpc.reporting.exporters import make_exporters
from persia_hpc.reporting.outcomes import Times, TrainerOutcome
from persia_hpc.reporting.run_files import EVENTS
from persia_hpc.reporting.scalars import TelemetryFollower
from persia_hpc.reporting.screen import Screen
from persia_hpc.runtime.telemetry import Counts
from persia_hpc.serving.directory import ExportDirectory
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.dense.allreduce import make_dense_reducer
from persia_hpc.trainer.dense.state import DenseState, dense_states
from persia_hpc.trainer.driver import Driver
from persia_hpc.trainer.exporting import Exporter
from persia_hpc.trainer.following import Following
from persia_hpc.trainer.interfaces import BatchStream, DenseSync, NoPeers, Peers
from persia_hpc.trainer.metrics import MetricError
from persia_hpc.trainer.saving import Saver
from persia_hpc.trainer.session import Session

from .facts import Facts
from .task import Task


@dataclass(frozen=True)
class TrainerStart:
    """Holds what a trainer has before it has batches: any of it can be refused without harm."""

    driver: Driver | None = None  # the standard loop; None for the user's own
    resume: DenseState | None = None  # from which the run continues
    initial: DenseState | None = None  # with whose weights a new run begins
    following: Following | None = None  # with `data.follow`
    events: JsonLines | None = None  # on trainer 0
    export: ExportDirectory | None = None  # on trainer 0


def prepare_trainer(
    facts: Facts, task: Task, run_dir: Path, start: Path | None, trainer_rank: int
) -> TrainerStart:
    """Builds what the user named, and reads the dense part of the checkpoint `start`.

    Raises UserError for what can't be built or doesn't fit, DataError for a damaged checkpoint.
    """
    events: JsonLines | None = None
    loggers: list[MetricLogger] = []
    if trainer_rank == 0:
        events = JsonLines(run_dir / EVENTS)
        shown: list[MetricLogger] = [
            *([] if task.quiet else [Screen()]),
            *([JsonStream(sys.stdout)] if task.lines else []),
        ]
        loggers = [events, *shown]
        if others := [*make_exporters(facts.config.metrics, run_dir), *task.loggers]:
            loggers.append(TelemetryFollower(others, run_dir))
        if start is None and facts.config.checkpoint.init_from and not foreign_source(facts.config):
            say_choice(Path(facts.config.checkpoint.init_from))
    driver = None
    if task.main is None:
        inputs, num_items = (
            make_inputs(facts.layout, facts.schema, facts.catalogue),
            facts.num_samples.get("items", 0),
        )
        driver = Driver(facts.config, inputs, task.callbacks, loggers, num_items=num_items)
    resume, initial = dense_states(facts.config, start, driver.model if driver is not None else None)
    following = None
    if facts.config.data.follow:
        following = Following(facts.config, facts.schema, facts.schedules["train"], start, trainer_rank)
    export = None
    if facts.config.export.dir is not None and trainer_rank == 0:
        export = ExportDirectory(Path(facts.config.export.dir))
    return TrainerStart(driver, resume, initial, following, events, export)


def make_session(
    facts: Facts,
    stream: BatchStream,
    *,
    device: torch.device,
    peers: Peers | None = None,
    reducer: DenseSync | None = None,
    start: TrainerStart | None = None,
    run_dir: Path | None = None,
) -> Session:
    """Returns a trainer's session on `stream`; without `peers` and `reducer` it is the only trainer.

    run_dir: where checkpoints go; a session without one writes none.
    """
    start = start or TrainerStart()
    peers = peers or NoPeers()
    saver = None
    if run_dir is not None:
        saver = Saver(
            facts.config,
            stream,
            peers,
            run_dir,
            facts.schema,
            facts.num_samples,
            data=facts.data,
            resume=start.resume,
            known_files=start.following.known_files if start.following is not None else None,
        )
    exporter = None
    if run_dir is not None and facts.config.export.dir is not None:
        exporter = Exporter(facts.config, stream, peers, facts.schema, start.export, run_dir)
    return Session(
        facts.config,
        facts.layout,
        make_inputs(facts.layout, facts.schema, facts.catalogue),
        facts.schedules,
        stream=stream,
        peers=peers,
        reducer=reducer or make_dense_reducer(facts.config.train, None, peers),
        device=device,
        resume=start.resume,
        initial=start.initial,
        following=start.following,
        saver=saver,
        exporter=exporter,
    )


def trainer_counts(session: Session) -> Counts:
    """Returns what a trainer has counted up to now, for telemetry."""
    counters = {"samples": session.samples, "skipped_steps": session.skipped_steps}
    return Counts(session.step_number, {"staleness": session.last_staleness}, counters)


def train_session(session: Session, task: Task, driver: Driver | None) -> TrainerOutcome:
    """Trains to the end or a stop, writes the last checkpoint and closes the session.

    Collective over trainers.
    Raises MetricError for a metric of the user's own that fails, after the last checkpoint.
    """
    if session.config.train.compile and session.trainer_rank == 0 and not task.quiet and session.full_batch:
        text = "the dense network is being compiled (train.compile): the first step takes longer"
        say(text)  # before others say how long they wait
    failed: MetricError | None = None
    try:
        if driver is not None:
            driver.run(session)
        elif task.main is not None:
            with contextlib.suppress(TrainingEndedError):
                task.main(session)
    except MetricError as error:
        failed = error
    session.check_model()
    if not session.drained:
        text = "no checkpoint is written: the loop over session.batches was left before its end"
        say(text)
    elif session.config.train.save and session.step_number and session.model is not None:
        # The last checkpoint of a run that has ended is a full one; in a hurry the changes will do.
        session.save(full=session.interrupted is None)
    if session.exporter is not None and session.drained and session.model is not None:
        session.exporter.finish(session.state.restored_step or session.step_number)
    session.close()
    if failed is not None:
        raise failed
    return TrainerOutcome(
        steps=session.step_number,
        samples=session.samples,
        skipped_steps=session.skipped_steps,
        first_step=session.state.first_step,
        first_samples=session.state.first_samples,
        stop_reason=session.stop_reason,
        interrupted=session.interrupted is not None,
        evaluate_seconds=session.state.evaluate_seconds,
        compile_seconds=session.state.compile_seconds,
        checkpoints=session.saver.statistics() if session.saver is not None else {},
        export=session.exporter.statistics() if session.exporter is not None else None,
        results=session.results,
        best=driver.best_evaluation() if driver is not None else None,
        restored_step=session.state.restored_step,
        follow=session.following.statistics() if session.following is not None else None,
        steady=session.pace.steady(),
        times=Times.of_phases(session.phases, session.wait_seconds()),
    )
