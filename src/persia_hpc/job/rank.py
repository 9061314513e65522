"""One rank of an MPI job: from COMM_WORLD to its role and back to the summary."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mpi4py import MPI

from persia_hpc._native import keep_freed_memory
from persia_hpc.api import Body, open_sources, start_run_dir, trainer_part
from persia_hpc.callbacks import Callback
from persia_hpc.checkpoint.files import discard_partial, make_newest, read_manifest, whole_checkpoints
from persia_hpc.checkpoint.matching import check_match
from persia_hpc.config import Config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.embedding_worker.rings import WorkerPlanes
from persia_hpc.embedding_worker.serve import WorkerLoop
from persia_hpc.errors import EXIT_USER, AgreedError, AgreedExit, DataError, UserError
from persia_hpc.launch.ending import abort
from persia_hpc.launch.environment import make_run_dir
from persia_hpc.launch.registry import register_rank, report_failure, start_log
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.parameter_server.serve import ServerLoop
from persia_hpc.reporting.events import MetricLogger
from persia_hpc.reporting.screen import Screen, summary_text
from persia_hpc.reporting.summary import make_summary, write_json
from persia_hpc.reporting.trace import clock_offsets, write_trace
from persia_hpc.runtime.loop import RankContext
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.schedule import make_schedules
from persia_hpc.table_layout import make_layout
from persia_hpc.topology.channels import RingBytes, feed_channels, fitting, row_channels
from persia_hpc.topology.communicators import Communicators, check_single_mpi_library, split_world
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Role
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import ProgressThread, Waiter, default_spin
from persia_hpc.transport.window import shared_memory_room

from .agreement import agree, agree_on_data
from .resume import first_sound_checkpoint, load_start

LOG = logging.getLogger("persia_hpc")


class RankJob:
    """This rank's part of one job. All that can be refused is refused before the first window exists."""

    def __init__(
        self,
        config: Config,
        *,
        world: MPI.Intracomm = MPI.COMM_WORLD,
        quiet: bool = False,
        stop: StopSignals | None = None,
    ):
        """Collective over `world`, all of whose ranks get a role: agrees on the run directory.

        `stop`: where signals are noted that ask the run to stop.
        """
        self.world = world
        self.stop = stop or StopSignals()
        self.quiet = quiet
        directory, problem = None, None
        if self.world.rank == 0:
            try:
                directory = str(make_run_dir(config.run_dir, resume=config.checkpoint.resume).absolute())
            except UserError as error:
                problem = str(error)
        directory, problem = self.world.bcast((directory, problem))
        if directory is None:
            if self.world.rank == 0:
                print(f"persia-hpc: error: {problem}", file=sys.stderr, flush=True)
            raise AgreedExit(EXIT_USER)
        self.run_dir = Path(directory)
        self.config = config
        register_rank(self.run_dir, self.world.rank)
        start_log(self.run_dir, self.world.rank)

    def fail(self, error: BaseException) -> NoReturn:
        """Records why, says it once on the screen, and ends the whole job with the error's exit code."""
        code = report_failure(self.run_dir, self.world.rank, self._role(), error)
        if isinstance(error, AgreedError):
            # Every rank is here, so the job can end without the launcher's talk of aborts.
            self.world.Barrier()
            MPI.Finalize()
            raise AgreedExit(code)
        abort(self.world, code)

    def _role(self) -> str:
        groups: Communicators | None = getattr(self, "groups", None)
        return f"{groups.me.role.value} {groups.me.role_rank}" if groups else "starting"

    def run(
        self, main: Body | None, callbacks: Sequence[Callback], loggers: Sequence[MetricLogger]
    ) -> dict[str, Any]:
        """Plays the role to the end; the summary, on every rank. Collective."""
        config = self.config
        self.groups = groups = agree(self.world, lambda: split_world(self.world, config))
        role, role_rank = groups.me.role, groups.me.role_rank
        register_rank(self.run_dir, self.world.rank, role.value, role_rank)
        self.watchdog = Watchdog(self._role(), config.transport, self.run_dir / "failure.json", self.fail)
        # Cores that a launcher gave to this rank alone are all its own, shared ones are divided.
        mine = (groups.me.node, tuple(sorted(os.sched_getaffinity(0))))
        self.fair_threads = max(1, len(mine[1]) // self.world.allgather(mine).count(mine))
        if self.world.rank == 0:
            LOG.info("plan:\n%s", groups.plan.table(groups.hosts))
            if not self.quiet:
                print(groups.plan.table(groups.hosts), file=sys.stderr, flush=True)
        sources = agree(
            self.world, lambda: open_sources(config, self.run_dir) if role is Role.EMBEDDING_WORKER else {}
        )
        self.schema, self.num_samples = schema, counts = agree_on_data(self.world, groups.hosts, sources)
        self.schedules = make_schedules(config, counts)
        self.layout = agree(self.world, lambda: make_layout(config, schema))
        self.ring_bytes = self._ring_bytes(schema)
        part: Callable[[Path | None], Any] = {
            Role.PARAMETER_SERVER: lambda start: self._serve_rows(start),
            Role.EMBEDDING_WORKER: lambda _: self._work(sources),
            Role.TRAINER: lambda start: self._train(start, main, callbacks, loggers),
        }[role]
        steps = self._prepare(part)
        statistics, finish = self._play(role, steps)
        return self._summarize(statistics, finish)

    def _prepare(self, part: Callable[[Path | None], Any]) -> Any:
        """`part` makes a generator: up to its first yield it prepares (and may refuse), then the role runs.
        Collective.
        """
        found = []
        if self.world.rank == 0 and self.config.checkpoint.resume:
            discard_partial(self.run_dir)
            found = whole_checkpoints(self.run_dir)

        def prepare(path: Path | None) -> Any:
            steps = part(path)

            def first() -> None:
                if path is not None:
                    check_match(str(path), read_manifest(path), self.config, self.schema, self.num_samples)
                next(steps)

            agree(self.world, first)
            return steps

        try:
            use = make_newest if self.world.rank == 0 else lambda _: None
            return first_sound_checkpoint(self.world.bcast(found), prepare, self._announce, use)
        except DataError as error:  # by all ranks
            raise AgreedError(error.exit_code, str(error)) from None

    def _announce(self, text: str) -> None:
        if self.world.rank == 0:
            LOG.info("%s", text)
            print(f"persia-hpc: {text}", file=sys.stderr, flush=True)

    def _play(self, role: Role, steps: Any) -> tuple[dict[str, Any], Any]:
        if role is not Role.PARAMETER_SERVER:  # they allocate the same large arrays in every step
            keep_freed_memory()
        try:
            self.watchdog.start()
            next(steps)
        except StopIteration as end:
            result: tuple[dict[str, Any], Any] = end.value
            return result
        raise AssertionError(f"{role.value} yielded twice")

    def _plane(self, comm: MPI.Intracomm | None, channels: list[Channel]) -> Plane:
        assert comm is not None
        return Plane(comm, channels)

    def _ring_bytes(self, schema: DatasetSchema) -> RingBytes:
        """What is asked for; or what batches need, as far as every node has memory for it. Collective."""
        plan = self.groups.plan
        wanted = ring_sizes(
            self.config,
            self.layout,
            schema,
            num_servers=plan.count(Role.PARAMETER_SERVER),
            num_trainers=plan.count(Role.TRAINER),
        )
        if self.config.transport.ring_bytes is not None:
            return wanted
        found = self.world.allgather((self.groups.me.node, shared_memory_room()[0]))
        free = {node: min(b for n, b in found if n == node) for node, num_bytes in found if num_bytes}
        size = fitting(plan, wanted, free)
        if self.world.rank == 0:
            LOG.info(
                "rings: %s%s", size, "" if size == wanted else f", for lack of shared memory not {wanted}"
            )
        return size

    def _context(self, *planes: Plane) -> RankContext:
        here = sum(m.node == self.groups.me.node for m in self.groups.plan.members)
        return RankContext(Waiter(*planes, spin=default_spin(here)), self.watchdog, self.stop)

    def _ranks(self, role: Role, rank_of: Callable[[Role, int], int]) -> list[int]:
        return [rank_of(role, i) for i in range(self.groups.plan.count(role))]

    def _serve_rows(self, start: Path | None) -> Any:
        groups, plan = self.groups, self.groups.plan
        engine = ParameterServer(
            self.config,
            self.layout,
            server_rank=groups.me.role_rank,
            num_servers=plan.count(Role.PARAMETER_SERVER),
            num_trainers=plan.count(Role.TRAINER),
            num_steps=self.schedules["train"].num_steps,
        )
        load_start(engine, self.config, start)
        yield
        plane = self._plane(groups.row_plane, row_channels(groups.plan, self.ring_bytes))
        workers = self._ranks(Role.EMBEDDING_WORKER, groups.row_rank)
        sys.setswitchinterval(1e-4)  # a thread that writes a checkpoint must give up the GIL soon
        loop = ServerLoop(engine, self.config, plane, workers, self._context(plane))
        loop.run()
        plane.free()
        phases = loop.phases.statistics()
        return {**engine.statistics(), "wait": {"idle": loop.phases.seconds["idle"]}, **phases}, None

    def _work(self, sources: Mapping[str, Any]) -> Any:
        groups, plan, config = self.groups, self.groups.plan, self.config
        engine = EmbeddingWorker.of(
            config, self.layout, plan.count(Role.PARAMETER_SERVER), groups.me.role_rank
        )
        yield
        # The reading thread gives up the GIL at every HDF5 call, and must soon get it from the polling loop.
        sys.setswitchinterval(1e-4)
        row_plane = self._plane(groups.row_plane, row_channels(groups.plan, self.ring_bytes))
        feed_plane = self._plane(groups.feed_plane, feed_channels(groups.plan, self.ring_bytes))
        loop = WorkerLoop(
            engine,
            config,
            sources,
            WorkerPlanes(
                row_plane=row_plane,
                servers=self._ranks(Role.PARAMETER_SERVER, groups.row_rank),
                feed_plane=feed_plane,
                trainers=self._ranks(Role.TRAINER, groups.feed_rank),
                workers_of_trainer=plan.workers_of_trainer,
            ),
            self._context(row_plane, feed_plane),
        )
        loop.run()
        row_plane.free()
        feed_plane.free()
        return loop.statistics(), None

    def _train(
        self,
        start: Path | None,
        main: Body | None,
        callbacks: Sequence[Callback],
        loggers: Sequence[MetricLogger],
    ) -> Any:
        import torch  # only here: servers and workers must not pay for it

        from persia_hpc.trainer.batch import make_inputs
        from persia_hpc.trainer.device import choose_device
        from persia_hpc.trainer.driver import Driver
        from persia_hpc.trainer.following import Following
        from persia_hpc.trainer.saving import dense_states
        from persia_hpc.trainer.serve import FeedingWorkers, MpiPeers, RingStream, make_reducer
        from persia_hpc.trainer.session import Session

        groups, plan, config = self.groups, self.groups.plan, self.config
        me = groups.me
        here = [m.role_rank for m in plan.members if (m.node, m.role) == (me.node, me.role)]
        torch.set_num_threads(config.train.threads or self.fair_threads)
        device = choose_device(config.train.device, here.index(me.role_rank))
        inputs = make_inputs(self.layout, self.schema)
        driver = None if main is not None else Driver(config, inputs, callbacks, loggers)
        resume, initial = dense_states(config, start, driver.model if driver is not None else None)
        following = None
        if config.data.follow:
            following = Following(config, self.schema, self.schedules["train"], start, me.role_rank)
        yield
        peers = MpiPeers(groups.role_comm, self.watchdog)
        reducer = make_reducer(config, groups.role_comm, peers)
        check_single_mpi_library()
        plane = self._plane(groups.feed_plane, feed_channels(groups.plan, self.ring_bytes))
        # A computing trainer is outside MPI: one-sided writes of remote workers need somebody inside.
        progress = ProgressThread(groups.feed_plane) if plane.remote or reducer.one_sided else None
        if progress is not None:
            progress.start()
        stream = RingStream(
            plane,
            self.layout,
            FeedingWorkers(
                self._ranks(Role.EMBEDDING_WORKER, groups.feed_rank),
                plan.workers_of_trainer[me.role_rank],
                me.role_rank,
            ),
            self._context(plane),
            config.train.trace,
        )
        session = Session(
            config,
            self.layout,
            inputs,
            self.schedules,
            stream=stream,
            peers=peers,
            reducer=reducer,
            device=device,
            resume=resume,
            initial=initial,
            following=following,
        )
        jsonl = None
        if me.role_rank == 0:
            jsonl = start_run_dir(config, self.run_dir)
            if driver is not None:
                driver.loggers = [jsonl, *([] if self.quiet else [Screen()]), *driver.loggers]
        result = trainer_part(session, main, driver, self.run_dir, self.schema, self.num_samples)
        if progress is not None:
            progress.stop()
        plane.free()
        if me.role_rank != 0:
            return result, None

        def finish(summary: dict[str, Any]) -> None:
            if driver is not None:
                driver.finish(summary)
            if jsonl is not None:
                jsonl.close()

        return result, finish

    def _summarize(self, statistics: dict[str, Any], finish: Any) -> dict[str, Any]:
        plan = self.groups.plan
        everything = self.world.gather(statistics)
        offsets = None
        if self.config.train.trace is not None:
            offsets = clock_offsets(self.world, [m.node for m in plan.members])
        summary = None
        if everything is not None:
            by_role = {role: [everything[r] for r in plan.ranks(role)] for role in Role}
            summary = make_summary(
                self.config,
                roles={f"{role.value}s": plan.count(role) for role in Role},
                trainer=by_role[Role.TRAINER][0],
                servers=by_role[Role.PARAMETER_SERVER],
                workers=by_role[Role.EMBEDDING_WORKER],
                waits={role.value: [s["wait"] for s in each] for role, each in by_role.items()},
                phases={role.value: [s["phases"] for s in each] for role, each in by_role.items()},
                mpi_library=" ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
            )
            summary["run_dir"] = str(self.run_dir)
            if offsets is not None:
                names = [f"{m.role.value} {m.role_rank}" for m in plan.members]
                intervals = [s["intervals"] for s in everything]
                write_trace(self.run_dir, list(zip(names, intervals, strict=True)), offsets, self.config)
            write_json(self.run_dir / "summary.json", summary)
        agreed: dict[str, Any] = self.world.bcast(summary)
        self.watchdog.stop()
        if finish is not None:
            finish(agreed)
            if not self.quiet:
                print(summary_text(agreed), file=sys.stderr, flush=True)
        LOG.info("%s: done, waited %s", self._role(), statistics["wait"])
        return agreed
