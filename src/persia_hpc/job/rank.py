"""Runs one rank of an MPI job: from COMM_WORLD to its duty and back to the summary."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from mpi4py import MPI

from persia_hpc.checkpoint.files import discard_partial, make_newest, whole_checkpoints
from persia_hpc.config import Config
from persia_hpc.errors import EXIT_USER, AgreedError, AgreedExit, DataError, UserError
from persia_hpc.launch.ending import abort
from persia_hpc.launch.environment import supervised
from persia_hpc.launch.registry import register_rank, report_failure, start_log
from persia_hpc.launch.run_dir import claimed_run_dir
from persia_hpc.printable import printable, say
from persia_hpc.reporting.outcomes import JobOutcome, ServerOutcome, TrainerOutcome, WorkerOutcome
from persia_hpc.reporting.summary import make_summary, write_json
from persia_hpc.reporting.trace import clock_offsets, write_trace
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.telemetry import Telemetry
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.samples.catalogue import Catalogue
from persia_hpc.samples.identity import SampleRange
from persia_hpc.samples.source import FileSource, Source
from persia_hpc.topology.channels import RingBytes
from persia_hpc.topology.communicators import show_gpus, split_world
from persia_hpc.topology.roles import Role

from .agreement import agree, agree_on_data, meet
from .binding import Binding, bind_ranks
from .duties import Duty, ServerDuty, TrainerDuty, WorkerDuty
from .facts import Facts, concerns_checkpoints, make_facts, training_data
from .place import Place, choose_ring_bytes
from .resume import first_sound_checkpoint
from .sources import check_sequences, open_sources
from .task import Task

LOG = logging.getLogger("persia_hpc")
Outcome = ServerOutcome | WorkerOutcome | TrainerOutcome


class StartingRank:
    """Holds what a rank knows before it has a role, and how it ends the job if it fails."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        *,
        world: MPI.Intracomm = MPI.COMM_WORLD,
        stop: StopSignals | None = None,
        supervised: bool = False,
    ):
        """Starts the rank's log.

        run_dir: claimed for this job. world: all of its ranks get a role. stop: notes signals that ask the
        run to stop. supervised: whether the supervisor says why the job fails.
        """
        self.config = config
        self.run_dir = run_dir
        self.world = world
        self.stop = stop or StopSignals()
        self.supervised = supervised
        start_log(run_dir, world.rank)

    def fail(self, error: BaseException, role: str = "starting") -> NoReturn:
        """Records why, says it once on the screen, and ends the whole job with the error's exit code."""
        code = report_failure(self.run_dir, self.world.rank, role, error, supervised=self.supervised)
        if isinstance(error, AgreedError):
            # Every rank is here, so the job can end without the launcher's talk of aborts.
            self.world.Barrier()
            MPI.Finalize()
            raise AgreedExit(code)
        abort(self.world, code)


class RankJob:
    """Plays this rank's role. Whatever may be refused is refused before the first window exists."""

    def __init__(self, start: StartingRank, task: Task) -> None:
        """Takes a role.

        Collective over the world.
        Raises AgreedError if the ranks can't play the roles that the configuration asks for.
        """
        self.start = start
        self.task = task
        self.config, self.world, self.run_dir = start.config, start.world, start.run_dir
        meet(self.world)  # all imports are done: MPI polls until the slowest is here
        self.communicators = agree(self.world, lambda: split_world(self.world, self.config))
        me = self.communicators.me
        self.role = f"{me.role.value} {me.role_rank}"
        # Of a job's ranks only trainers see GPUs from here on.
        show_gpus(me.role, os.environ)
        register_rank(self.run_dir, self.world.rank, me.role.value, me.role_rank)
        failure = self.run_dir / "failure.json"
        self.watchdog = Watchdog(self.role, self.config.transport, failure, self.fail)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the whole job as `StartingRank.fail` does."""
        self.start.fail(error, self.role)

    def run(self) -> dict[str, Any]:
        """Plays the role to the end; returns the summary, on every rank.

        Collective over the world.
        """
        plan, hosts = self.communicators.plan, self.communicators.hosts
        binding = bind_ranks(self.communicators, self.config)
        if self.world.rank == 0:
            text = f"{plan.table(hosts)}\n{binding.text}"
            LOG.info("plan:\n%s", text)
            if not self.task.quiet:
                print(text, file=sys.stderr, flush=True)
        sources = agree(self.world, self._open_sources)
        schema, num_samples, catalogue = agree_on_data(self.world, hosts, sources)
        data = self._training_data(sources)
        facts = agree(self.world, lambda: make_facts(self.config, schema, num_samples, data, catalogue))
        ring_bytes = choose_ring_bytes(facts, self.communicators)
        place = self.make_place(ring_bytes=ring_bytes, binding=binding)
        duty = self.make_duty(facts, place, sources)
        self._prepare(duty, facts)
        self.watchdog.start()
        outcome = duty.perform()
        summary = self._summarize(outcome)
        self.watchdog.stop()
        duty.finish(summary)
        binding.undo()
        LOG.info("%s: done, waited %s", self.role, outcome.times.wait if outcome.times is not None else {})
        return summary

    def _open_sources(self) -> Mapping[str, FileSource | Catalogue]:
        """Opens the data if this rank reads any; workers share the check of sequences."""
        me = self.communicators.me
        if me.role is not Role.EMBEDDING_WORKER:
            return {}
        sources = open_sources(self.config, self.run_dir)
        check_sequences(sources, me.role_rank, self.communicators.plan.count(Role.EMBEDDING_WORKER))
        return sources

    def _training_data(self, sources: Mapping[str, Source]) -> tuple[SampleRange, ...]:
        """Returns what tells the training samples from others, if checkpoints are concerned; one rank reads.

        Collective over the world.
        """
        if not concerns_checkpoints(self.config, self.task):
            return ()
        reader: int = self.communicators.plan.ranks(Role.EMBEDDING_WORKER)[0]
        mine = agree(self.world, lambda: training_data(sources) if self.world.rank == reader else ())
        data: tuple[SampleRange, ...] = self.world.bcast(mine, root=reader)
        return data

    def make_place(self, *, ring_bytes: RingBytes, binding: Binding) -> Place:
        """Returns this rank's place; the arguments are what ranks have found out together."""
        me = self.communicators.me
        return Place(
            communicators=self.communicators,
            ring_bytes=ring_bytes,
            fair_threads=binding.fair_threads,
            spin=binding.spin,
            run_dir=self.run_dir,
            stop=self.start.stop,
            watchdog=self.watchdog,
            telemetry=Telemetry(self.run_dir, me.role.value, me.role_rank, self.config.metrics.every_seconds),
            memory_grows=self.config.transport.memory_grows,
        )

    def make_duty(self, facts: Facts, place: Place, sources: Mapping[str, Source]) -> Duty:
        """Returns what this rank has to do in its role."""
        role = self.communicators.me.role
        if role is Role.PARAMETER_SERVER:
            return ServerDuty(facts, place)
        if role is Role.EMBEDDING_WORKER:
            return WorkerDuty(facts, place, sources)
        return TrainerDuty(facts, place, self.task)

    def _prepare(self, duty: Duty, facts: Facts) -> None:
        """Prepares all ranks to continue from the newest checkpoint that none of them finds damaged.

        Collective over the world.
        """

        def prepare_here(path: Path | None) -> None:
            facts.check_start(path)
            duty.prepare(path)

        def announce(text: str) -> None:
            if self.world.rank == 0:
                LOG.info("%s", text)
                say(text)

        def use(path: Path) -> None:
            if self.world.rank == 0:
                make_newest(path)

        found = []
        if self.world.rank == 0 and self.config.checkpoint.resume:
            for text in discard_partial(self.run_dir):
                announce(text)
            found = whole_checkpoints(self.run_dir)
        try:
            first_sound_checkpoint(
                self.world.bcast(found),
                lambda path: agree(self.world, lambda: prepare_here(path)),
                announce,
                use,
            )
        except DataError as error:  # by all ranks
            raise AgreedError(error.exit_code, str(error)) from None

    def _summarize(self, outcome: Outcome) -> dict[str, Any]:
        plan = self.communicators.plan
        everything = self.world.gather(outcome)
        offsets = None
        if self.config.train.trace is not None:
            offsets = clock_offsets(self.world, [m.node for m in plan.members])
        summary = None
        if everything is not None:
            servers, workers, trainers = ([everything[r] for r in plan.ranks(role)] for role in Role)
            library = " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())
            summary = make_summary(self.config, JobOutcome(servers, workers, trainers), mpi_library=library)
            summary["run_dir"] = str(self.run_dir)
            if offsets is not None:
                names = [f"{m.role.value} {m.role_rank}" for m in plan.members]
                intervals = [each.times.intervals for each in everything]
                write_trace(self.run_dir, list(zip(names, intervals, strict=True)), offsets, self.config)
            write_json(self.run_dir / "summary.json", summary)
        agreed: dict[str, Any] = self.world.bcast(summary)
        return agreed


def play_role(start: StartingRank, task: Task) -> dict[str, Any]:
    """Plays this rank's role; returns the summary.

    An error ends the whole job: leaving only this rank would leave the others waiting for ever.

    Collective over the world.
    """
    rank: StartingRank | RankJob = start
    try:
        rank = job = RankJob(start, task)
        return job.run()
    except BaseException as error:
        rank.fail(error)


def run_in_mpi(config: Config, task: Task, stop: StopSignals) -> dict[str, Any]:
    """Runs a job whose ranks are processes of the user's own program.

    Collective over COMM_WORLD.
    """
    world = MPI.COMM_WORLD
    with contextlib.ExitStack() as held:
        try:
            run_dir = held.enter_context(
                claimed_run_dir(world, config.run_dir, resume=config.checkpoint.resume)
            )
        except UserError as error:
            if world.rank == 0:
                print(f"persia-hpc: error: {printable(error)}", file=sys.stderr, flush=True)
            raise AgreedExit(EXIT_USER) from None
        return play_role(StartingRank(config, run_dir, stop=stop, supervised=supervised()), task)
