"""Runs an embedding worker rank: the engine between the rings of the row plane and those of the feed plane.

Trainer 0 drives: it announces segments of steps, evaluations, checkpoints and the end; every worker tells its
servers what they must know. Nothing here ever blocks on one peer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from persia_hpc.arrays import Array
from persia_hpc.checkpoint.names import shard_name
from persia_hpc.config import Config
from persia_hpc.protocol.commands import (
    Checkpoint,
    CheckpointDone,
    CheckpointMarked,
    Evaluate,
    Export,
    Exported,
    Issued,
    Portion,
    Restore,
    Segment,
    SegmentEnd,
    StopAt,
    StopSignal,
)
from persia_hpc.protocol.messages import (
    Feed,
    FeedEvaluate,
    Gradients,
    Kind,
    Lookup,
    LookupRows,
    Pull,
    Rows,
    send,
    send_each,
    try_send,
)
from persia_hpc.runtime.loop import PollingLoop, RankContext
from persia_hpc.runtime.phases import WORKER, Phases
from persia_hpc.runtime.telemetry import Counts
from persia_hpc.runtime.watchdog import Wait
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.transport.records import Record
from persia_hpc.transport.ring import RingReceivers, RingSender, RingSenders

from .engine import EmbeddingWorker, KeyBatch
from .patches import Patches
from .rings import WorkerPlanes
from .stretches import Stretches

MAX_QUEUED_FEEDS = 2  # evaluation batches that may wait for room in a trainer's ring


class WorkerLoop:
    """Serves trainers until each of them has closed its rings."""

    def __init__(
        self,
        engine: EmbeddingWorker,
        config: Config,
        splits: SplitReaders,
        planes: WorkerPlanes,
        context: RankContext,
    ):
        """Connects to servers and trainers; `splits` reads the samples of each split."""
        self.engine = engine
        self.config = config
        self.planes = (planes.row_plane, planes.feed_plane)
        self.servers = planes.connect_servers()
        self.pulls = RingSenders([server.pulls for server in self.servers])
        self.pushes = RingSenders([server.pushes for server in self.servers])
        self.answers = RingReceivers([server.rows for server in self.servers])
        self.patched = RingReceivers([s.patches for s in self.servers if s.patches is not None])
        self.trainers = planes.connect_trainers(engine.worker_rank)
        self.stretches = Stretches(
            splits,
            worker_rank=engine.worker_rank,
            workers_of_trainer=planes.workers_of_trainer,
            on_ready=context.waiter.wake,
        )
        self.window = config.steps_ahead
        self.limit: int | None = None  # a stop is being agreed on: until then no further than this step
        self.issued = 0
        self.in_flight: dict[tuple[int, int], KeyBatch] = {}  # pulled, gradients not back yet
        self.looked_up: dict[tuple[int, int], KeyBatch] = {}
        self.held: deque[Record] = deque()  # gradient records that queued pushes still point into
        self.ended = False
        self.first_pull: dict[int, float] = {}
        self.patches = Patches(engine.layout, engine.num_servers, self.trainers)
        self.phases = Phases(WORKER, config.train.trace)
        # Servers that have not marked, and that have not written, the checkpoint.
        self._marking: set[int] = set()
        self._writing: set[int] = set()
        self._context = context
        self._loop = PollingLoop(context, self._poll, self._forward_signal)

    def run(self) -> None:
        """Serves until all trainers have closed their rings and everything that was queued has been sent."""
        self._context.watchdog.start(self._describe_wait)
        self.phases.start()
        self._context.telemetry.begin(self.phases, self._counts)
        senders = self._senders()
        self._loop.run(
            lambda: (
                self.ended
                and all(server.rows.closed for server in self.servers)
                and not any(sender.pending for sender in senders)
            ),
            self._count_idle_time,
        )
        self.phases.stop()

    def _counts(self) -> Counts:
        in_flight = len(self.in_flight) + len(self.looked_up)
        return Counts(self.issued, {"in_flight_batches": in_flight}).of_rings(*self.planes)

    def _poll(self) -> bool:
        moved = self._poll_trainers()
        moved |= self._poll_servers()
        moved |= self._ask_for_rows() or self.patches.let_go()
        for plane in self.planes:
            moved |= plane.progress()
        self._release_held()
        return moved

    def _count_idle_time(self, begin: float) -> None:
        waits_for_reader = self.stretches.current is not None and self._may_issue()
        self.phases.add("read" if waits_for_reader else "idle", begin)

    def _forward_signal(self, signal: int) -> None:
        if not self.ended:
            send(self.trainers[0].feed, StopSignal(signal))

    def _senders(self) -> list[RingSender]:
        rings = [s for server in self.servers for s in (server.pulls, server.pushes)]
        return [*rings, *(t.feed for t in self.trainers.values()), *self.patches.senders.values()]

    def _describe_wait(self) -> Wait:
        for what, batches in (("step", self.in_flight), ("evaluation batch", self.looked_up)):
            if batches:
                (number, trainer), batch = min(batches.items())
                if owed := batch.owed(f"{what} {number}"):
                    return Wait(owed)
                return Wait(f"the gradients of {what} {number} from trainer {trainer}")
        between = self.stretches.current is None
        begin = "begin" if self._writing else "read"
        for what, servers in ((begin, self._marking), ("write", self._writing)):
            if between and servers:
                late = ", ".join(map(str, sorted(servers)))
                # Reading and writing take as long as the file system needs.
                return Wait(f"parameter server {late} to {what} a checkpoint", patient=what != "begin")
        # A user's own loop may do something else for long, and `data.follow` waits for files.
        waits = not self.ended and between and not self.config.data.follow
        return Wait("a command from trainer 0" if waits else None, patient=True)

    # ---- from trainers

    def _poll_trainers(self) -> bool:
        moved = False
        for trainer in self.trainers.values():
            while (record := trainer.gradients.poll()) is not None:
                moved = True
                if record.kind == Kind.GRADIENTS:
                    self._push_gradients(record)
                else:
                    self._obey(record)
                    record.release()
        if not self.ended and all(t.gradients.closed for t in self.trainers.values()):
            # Only now: trainer 0 may have ended before the last gradients of another trainer arrive.
            self.patches.let_go(0.0)
            for sender in self._senders():
                sender.close()
            self.ended = True
            self.stretches.close()  # a user's own loop may have been left early
        return moved

    def _push_gradients(self, record: Record) -> None:
        begin = time.perf_counter()
        message = Gradients.unpack(record)
        step, trainer = message.step, message.trainer
        batch = self.in_flight.pop((step, trainer))
        self.patches.push(self.pushes, batch, self.engine.split_gradients(batch, message.gradients))
        self.held.append(record)
        self._release_held()
        self.phases.add("push", begin, step, trainer=trainer)

    def _release_held(self) -> None:
        sent = self.planes[0].pending == 0
        if self.held and (sent or not any(server.pushes.pending for server in self.servers)):
            while self.held:
                self.held.popleft().release()

    def _obey(self, record: Record) -> None:
        kind = record.kind
        if kind == Kind.SEGMENT:
            self.stretches.announce(Segment.unpack(record))
            self._begin_next_stretch()
        elif kind == Kind.EVALUATE:
            self.stretches.announce(Evaluate.unpack(record))
            self._begin_next_stretch()
        elif kind == Kind.PORTION:
            self.stretches.begin_portion(Portion.unpack(record))
        elif kind == Kind.STOP_REQUEST:
            # Not at once: trainer 0 may be in an AllReduce with a trainer that waits for its batch.
            work = self.stretches.current
            left = work.last if work and work.requests and not work.evaluation else self.issued
            self.limit = max(self.issued, min(self.issued + 2 * (self.window + 2), left))
            send(self.trainers[0].feed, Issued(self.limit))
        elif kind == Kind.STOP_AT:
            self._shorten(StopAt.unpack(record).step)
        elif kind == Kind.CHECKPOINT:
            self._begin_checkpoint(Checkpoint.unpack(record))
        elif kind == Kind.RESTORE:
            self._mark(Restore.unpack(record))
        elif kind == Kind.EXPORT:
            self._mark(Export.unpack(record))
        elif kind == Kind.STOP_SIGNAL:
            send(self.trainers[0].feed, StopSignal.unpack(record))
        else:
            raise ValueError(f"an embedding worker got a record of kind {kind}")

    def _begin_checkpoint(self, command: Checkpoint) -> None:
        self._marking = set(range(len(self.servers)))
        self._writing = set(range(len(self.servers)))
        for p, server in enumerate(self.servers):
            send(server.pulls, replace(command, path=f"{command.path}/{shard_name(p)}"))

    def _mark(self, command: Restore | Export) -> None:
        if isinstance(command, Restore):  # nobody waits for the other
            self._marking = set(range(len(self.servers)))
        for server in self.servers:
            send(server.pulls, command)

    def _begin_next_stretch(self) -> None:
        """Begins the next segment or evaluation if all batches of the one before have been asked for."""
        command = self.stretches.begin_next()
        if not isinstance(command, Segment):
            return
        if command.first > 1:  # a pause is over: reading the first batch is part of training again
            self.first_pull[command.first] = time.time()
        self.issued = command.first - 1
        self.limit = None
        self.engine.forget_rows()
        for server in self.servers:
            send(server.pulls, command)

    def _shorten(self, last: int) -> None:
        """Ends the segment with step `last`, which no worker has gone beyond."""
        self.limit = None
        self.stretches.shorten(last)
        self._begin_next_stretch()
        end = SegmentEnd(last)
        for server in self.servers:
            send(server.pulls, end)
        for trainer in self.trainers.values():
            send(trainer.feed, end)

    # ---- to servers

    def _may_issue(self) -> bool:
        work = self.stretches.current
        if work is None or not work.requests:
            return False
        step = work.requests[0][0]
        if work.evaluation:
            waiting = max((t.feed.pending for t in self.trainers.values()), default=0)
            oldest = min((k for k, _ in self.looked_up), default=step)
            return waiting <= MAX_QUEUED_FEEDS and step - oldest <= self.config.data.prefetch
        if self.patches.due(self.in_flight):  # passing that on is more urgent than what comes after it
            return False
        oldest = min((s for s, _ in self.in_flight), default=step)
        return step - oldest <= self.window and (self.limit is None or step <= self.limit)

    def _ask_for_rows(self) -> bool:
        """Asks servers for the rows of all batches that have been read and may be asked for."""
        moved = False
        while self._may_issue():
            work = self.stretches.current
            assert work is not None
            item = work.reader.poll()
            if item is None:
                break
            (step, trainer), sample = item
            work.requests.popleft()
            evaluation = isinstance(work.command, Evaluate)
            num_global = sample.num_samples if evaluation else self.stretches.num_samples(step)
            begin = time.perf_counter()
            batch = self.engine.prepare(
                sample, step=step, trainer=trainer, num_global=num_global, evaluation=evaluation
            )
            traced = 0 if evaluation else step
            begin = self.phases.add("dedup", begin, traced, trainer=trainer)
            if isinstance(work.command, Evaluate):
                self._look_up(batch, work.command.step)
            else:
                self.first_pull.setdefault(work.command.first, time.time())
                self._pull(batch)
            self.phases.add("pull", begin, traced, trainer=trainer)
            moved = True
            self._begin_next_stretch()
        return moved

    def _pull(self, batch: KeyBatch) -> None:
        self.engine.reuse(batch)
        self.patches.begin(batch)
        self.in_flight[batch.step, batch.trainer] = batch
        self.issued = batch.step
        send_each(self.pulls, Pull(batch.step, batch.trainer, *self.engine.request(batch)))

    def _look_up(self, batch: KeyBatch, step: int) -> None:
        self.looked_up[batch.step, batch.trainer] = batch
        keys, counts, _ = self.engine.request(batch)
        send_each(self.pulls, Lookup(step, batch.trainer, batch.step, keys, counts))

    # ---- from servers

    def _poll_servers(self) -> bool:
        moved = False
        for p, record in chain(self.patched.poll(), self.answers.poll()):
            moved = True
            if not self.ended:  # else a trainer left early: the servers count rows as dropped
                self._take_answer(p, record)
            record.release()
        return moved

    def _take_answer(self, p: int, record: Record) -> None:
        kind = record.kind
        begin = time.perf_counter()
        if kind == Kind.ROWS:
            rows = Rows.unpack(record)
            batch = self.in_flight[rows.step, rows.trainer]
            batch.staleness = max(batch.staleness, rows.staleness)
            if self._feed_when_complete(batch, p, record, rows.rows, Feed):
                batch.rows, batch.held = [], None  # gradients need only the offsets
            self.phases.add("feed", begin, rows.step, trainer=rows.trainer)
        elif kind in (Kind.PATCH, Kind.WANT_FIRST):
            self.patches.receive(self.in_flight, p, record)
            self.phases.add("patch", begin, record.step, trainer=record.trainer)
        elif kind == Kind.LOOKUP_ROWS:
            found = LookupRows.unpack(record)
            batch = self.looked_up[found.number, found.trainer]
            if self._feed_when_complete(batch, p, record, found.rows, FeedEvaluate):
                del self.looked_up[found.number, found.trainer]
            self.phases.add("feed", begin)
        elif kind == Kind.CHECKPOINT_MARKED:
            self._marking.discard(p)
            if not self._marking:
                send(self.trainers[0].feed, CheckpointMarked.unpack(record))
        elif kind == Kind.CHECKPOINT_DONE:
            self._writing.discard(p)
            if not self._writing:
                send(self.trainers[0].feed, CheckpointDone.unpack(record))
        elif kind == Kind.EXPORTED:
            report = replace(Exported.unpack(record).report, servers=len(self.servers))
            send(self.trainers[0].feed, Exported(report))
        elif kind == Kind.STOP_SIGNAL:
            send(self.trainers[0].feed, StopSignal.unpack(record))
        else:
            raise ValueError(f"an embedding worker got a record of kind {kind} from a parameter server")

    def _feed_when_complete(
        self, batch: KeyBatch, p: int, record: Record, rows: Sequence[Array], message: type[Feed]
    ) -> bool:
        """Adds a server's rows, and those of others that are there; sends the batch on if none is missing.

        Returns whether it was sent. The rows of an only server are copied from its ring straight into the
        trainer's if there is room now. Otherwise they are copied aside: their record can't stay, because
        others lie behind it.
        """
        feed = self.trainers[batch.trainer].feed
        if len(self.servers) == 1 and try_send(feed, message(self.engine.assemble(batch, list(rows)))):
            batch.missing.clear()
            return True
        if not self.engine.add_rows(batch, p, rows):
            self._add_more_rows(batch, record)
        if batch.missing:
            return False
        send(feed, message(self.engine.assemble(batch)))
        return True

    def _add_more_rows(self, batch: KeyBatch, record: Record) -> None:
        """Adds the rows of other servers' answers like `record`, without a Python object for each."""
        training = record.kind == Kind.ROWS
        tag = None if training else record.tag
        fields: dict[str, Any] = {"step": record.step, "trainer": record.trainer, "tag": tag}
        places, most = self.answers.fill(
            record.kind, **fields, shares=batch.dedup.shares, rows=batch.rows, before=batch.before
        )
        batch.missing.difference_update(places)
        if training:
            batch.staleness = max(batch.staleness, most)
