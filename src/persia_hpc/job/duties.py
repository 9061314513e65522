"""Holds what each role has to do in an MPI job: prepare, which may be refused, then perform.

Only a trainer needs torch, and imports it when it prepares: servers and workers start without it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from persia_hpc._native import keep_freed_memory
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.embedding_worker.rings import WorkerPlanes
from persia_hpc.embedding_worker.serve import WorkerLoop
from persia_hpc.launch.run_dir import begin_run
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.parameter_server.serve import ServerLoop
from persia_hpc.reporting.outcomes import ServerOutcome, Times, TrainerOutcome, WorkerOutcome
from persia_hpc.reporting.screen import show_summary
from persia_hpc.runtime.imports import import_torch
from persia_hpc.samples.formats import keep_encoding
from persia_hpc.samples.source import Source
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.topology.communicators import check_single_mpi_library
from persia_hpc.topology.roles import Role
from persia_hpc.transport.progress import ProgressThread

from .facts import Facts
from .place import Place
from .resume import load_start
from .task import Task

if TYPE_CHECKING:
    import torch

    from .training import TrainerStart

_SWITCH_SECONDS = 1e-4  # a thread beside a polling loop must get the GIL, and give it up, soon


class Duty(Protocol):
    """Describes what a rank does in its role."""

    def prepare(self, start: Path | None) -> None:
        """Makes what needs no other rank, to continue from the checkpoint `start`, or anew if that is None.

        It is called again, with another checkpoint, after one that is damaged.

        Raises PersiaError for what can't be used, DataError for a damaged checkpoint.
        """

    def perform(self) -> ServerOutcome | WorkerOutcome | TrainerOutcome:
        """Plays the role to its end.

        Collective over the world.
        """

    def finish(self, summary: dict[str, Any]) -> None:
        """Receives the run's summary, when all roles have been played."""


class ServerDuty:
    """Keeps a part of the rows. See `Duty`."""

    def __init__(self, facts: Facts, place: Place) -> None:
        self.facts = facts
        self.place = place
        self.engine: ParameterServer | None = None

    def prepare(self, start: Path | None) -> None:
        self.engine = None  # with the rows of a damaged checkpoint, if there was one
        self.engine = ParameterServer(
            self.facts.config,
            self.facts.layout,
            server_rank=self.place.role_rank,
            num_servers=self.place.count(Role.PARAMETER_SERVER),
            num_trainers=self.place.count(Role.TRAINER),
            num_steps=self.facts.schedules["train"].num_steps,
        )
        load_start(self.engine, self.facts.config, start)

    def perform(self) -> ServerOutcome:
        engine, place = self.engine, self.place
        assert engine is not None, "prepare comes first"
        sys.setswitchinterval(_SWITCH_SECONDS)  # a thread writes checkpoints
        plane = place.row_plane()
        loop = ServerLoop(
            engine,
            self.facts.config,
            plane,
            place.ranks_in_row_plane(Role.EMBEDDING_WORKER),
            place.context(plane),
        )
        loop.run()
        plane.free()
        engine.check_disk()
        return ServerOutcome(**engine.statistics(), times=Times.of_loop(loop.phases, ("idle",)))

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class WorkerDuty:
    """Reads samples, asks servers for rows and hands batches to trainers. See `Duty`."""

    def __init__(self, facts: Facts, place: Place, sources: Mapping[str, Source]) -> None:
        self.facts = facts
        self.place = place
        self.sources = sources
        self.engine: EmbeddingWorker | None = None

    def prepare(self, start: Path | None) -> None:
        servers = self.place.count(Role.PARAMETER_SERVER)
        config, layout = self.facts.config, self.facts.layout
        self.engine = EmbeddingWorker.of(config, layout, servers, self.place.role_rank, self.sources)

    def perform(self) -> WorkerOutcome:
        engine, place = self.engine, self.place
        assert engine is not None, "prepare comes first"
        if place.role_rank == 0:  # workers see the data's folder
            config, encoding = self.facts.config, self.facts.schema.encoding
            keep_encoding(config.data, encoding, place.run_dir)
        keep_freed_memory()  # the same large arrays are allocated in every step
        sys.setswitchinterval(_SWITCH_SECONDS)  # a thread reads, and gives up the GIL at every HDF5 call
        row_plane, feed_plane = place.row_plane(), place.feed_plane()
        loop = WorkerLoop(
            engine,
            self.facts.config,
            SplitReaders(self.facts.config, self.sources, self.facts.schedules),
            WorkerPlanes(
                row_plane=row_plane,
                servers=place.ranks_in_row_plane(Role.PARAMETER_SERVER),
                feed_plane=feed_plane,
                trainers=place.ranks_in_feed_plane(Role.TRAINER),
                workers_of_trainer=place.communicators.plan.workers_of_trainer,
                fresh=self.facts.config.mode == "fresh",
            ),
            place.context(row_plane, feed_plane),
        )
        loop.run()
        row_plane.free()
        feed_plane.free()
        times = Times.of_loop(loop.phases, ("idle", "read"))
        return WorkerOutcome(loop.first_pull, **engine.statistics(), times=times)

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class TrainerDuty:
    """Trains the dense model, or runs the user's loop. See `Duty`."""

    def __init__(self, facts: Facts, place: Place, task: Task) -> None:
        self.facts = facts
        self.place = place
        self.task = task
        self.start: TrainerStart | None = None
        self.device: torch.device | None = None

    def prepare(self, start: Path | None) -> None:
        import_torch(eager=self.task.built_in and not self.facts.config.train.compile)
        import torch

        from persia_hpc.trainer.dense.reducers import check_reducer
        from persia_hpc.trainer.device import prepare_device

        from .training import prepare_trainer

        self.start = None
        place, train = self.place, self.facts.config.train
        check_reducer(self.facts.config, place.communicators.role_comm.size)
        torch.set_num_threads(train.threads or place.fair_threads)
        me = place.communicators.me
        here = [m for m in place.communicators.plan.members if (m.node, m.role) == (me.node, me.role)]
        self.device = prepare_device(train, [m.role_rank for m in here].index(me.role_rank))
        self.start = prepare_trainer(self.facts, self.task, place.run_dir, start, me.role_rank)

    def perform(self) -> TrainerOutcome:
        from persia_hpc.trainer.serve import FeedingWorkers, MpiPeers, RingStream, make_reducer

        from .training import make_session, train_session, trainer_counts

        place, config = self.place, self.facts.config
        assert self.start is not None, "prepare comes first"
        assert self.device is not None
        keep_freed_memory()  # the same large arrays are allocated in every step
        communicators = place.communicators
        peers = MpiPeers(communicators.role_comm, place.watchdog)
        reducer = make_reducer(config, communicators.role_comm, peers, place.spin)
        check_single_mpi_library()
        plane = place.feed_plane()
        # A computing trainer is outside MPI: a thread fetches from remote workers, and lets them fetch.
        progress = None
        if plane.remote or reducer.one_sided:
            progress = ProgressThread(plane)
            progress.start()
        stream = RingStream(
            plane,
            self.facts.layout,
            FeedingWorkers(
                place.ranks_in_feed_plane(Role.EMBEDDING_WORKER),
                communicators.plan.workers_of_trainer[place.role_rank],
                place.role_rank,
            ),
            place.context(plane),
            config.train.trace,
            fresh=config.mode == "fresh",
        )
        session = make_session(
            self.facts,
            stream,
            device=self.device,
            peers=peers,
            reducer=reducer,
            start=self.start,
            run_dir=place.run_dir,
        )
        place.telemetry.begin(session.phases, lambda: trainer_counts(session).of_rings(plane))
        if place.role_rank == 0:
            begin_run(place.run_dir, config, self.start.events)
        outcome = train_session(session, self.task, self.start.driver)
        if progress is not None:
            progress.stop()
        plane.free()
        return outcome

    def finish(self, summary: dict[str, Any]) -> None:
        if self.start is None or self.start.events is None:
            return
        if self.start.driver is not None:
            self.start.driver.finish(summary)
        self.start.events.close()
        show_summary(summary, quiet=self.task.quiet, lines=self.task.lines)
