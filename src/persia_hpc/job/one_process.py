"""Runs a job without MPI: all roles in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from persia_hpc.checkpoint.files import discard_partial, make_newest, whole_checkpoints
from persia_hpc.config import Config
from persia_hpc.launch.run_dir import begin_run, run_directory
from persia_hpc.printable import say
from persia_hpc.reporting.outcomes import JobOutcome, ServerOutcome, WorkerOutcome
from persia_hpc.reporting.screen import show_summary
from persia_hpc.reporting.summary import make_summary, write_json
from persia_hpc.reporting.trace import write_trace
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.telemetry import Telemetry
from persia_hpc.samples.formats import keep_encoding
from persia_hpc.samples.source import Source
from persia_hpc.trainer.device import prepare_device

from .facts import Facts, concerns_checkpoints, facts_of_sources
from .local_stream import LocalStream, local_server
from .resume import first_sound_checkpoint, load_start
from .sources import check_sequences, open_sources
from .task import Task
from .training import TrainerStart, make_session, prepare_trainer, train_session, trainer_counts


def run_in_one_process(config: Config, task: Task, stop: StopSignals) -> dict[str, Any]:
    """Runs a whole job in this process; returns the summary.

    Raises UserError for bad input, before training starts.
    """
    sources = open_sources(config, config.run_dir)
    check_sequences(sources)
    facts = facts_of_sources(config, sources, identify=concerns_checkpoints(config, task))
    facts.check_newest_checkpoint(config.run_dir)
    with run_directory(config.run_dir, resume=config.checkpoint.resume) as run_dir:
        try:
            return _train(facts, sources, run_dir, task, stop)
        finally:  # not when a collector finds them: the user may want to open or replace the files
            for source in sources.values():
                source.close()


def _train(
    facts: Facts, sources: Mapping[str, Source], run_dir: Path, task: Task, stop: StopSignals
) -> dict[str, Any]:
    config = facts.config
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    elif not task.quiet and torch.get_num_threads() > 1:
        load = os.getloadavg()[0]
        if load > (os.cpu_count() or 1) / 2:
            _announce(
                f"other work keeps this machine busy (load {load:.1f}): train.threads = 1 may be faster"
            )

    def prepare(path: Path | None) -> tuple[LocalStream, TrainerStart]:
        if path is not None or found:  # else it has been checked, and must not warn again
            facts.check_start(path)
        stream = LocalStream(facts, sources, local_server(facts), stop, ahead=True)
        load_start(stream.server, config, path)
        return stream, prepare_trainer(facts, task, run_dir, path, trainer_rank=0)

    found = []
    if config.checkpoint.resume:
        for text in discard_partial(run_dir):
            _announce(text)
        found = whole_checkpoints(run_dir)
    stream, start = first_sound_checkpoint(found, prepare, _announce, make_newest)
    session = make_session(
        facts,
        stream,
        device=prepare_device(config.train, local_rank=0),
        start=start,
        run_dir=run_dir,
    )
    begin_run(run_dir, config, start.events)
    telemetry = Telemetry(run_dir, "one_process", 0, config.metrics.every_seconds)
    telemetry.begin(session.phases, lambda: trainer_counts(session) | stream.server.counts())
    keep_encoding(config.data, facts.schema.encoding, run_dir)
    try:
        trainer = train_session(session, task, start.driver)
    finally:
        stream.close()  # whatever happened: nothing may read any more when the sources are closed
        if session.exporter is not None:
            session.exporter.close()
    stream.server.check_disk()
    outcome = JobOutcome(
        [ServerOutcome(**stream.server.statistics())], [WorkerOutcome(stream.first_pull)], [trainer]
    )
    summary = make_summary(config, outcome, mpi_library="none (one process)")
    summary["run_dir"] = str(run_dir)
    summary["staleness"]["bound"] = 0  # whatever the mode: a step's rows are updated before the next one
    if trainer.times is not None:
        write_trace(run_dir, [("one process", trainer.times.intervals)], [0.0], config)
    write_json(run_dir / "summary.json", summary)
    if start.driver is not None:
        start.driver.finish(summary)
    if start.events is not None:
        start.events.close()
    show_summary(summary, quiet=task.quiet, lines=task.lines)
    return summary


def _announce(text: str) -> None:
    say(text)
