"""Runs a parameter server rank: the engine behind the rings of the row plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from persia_hpc._native import PendingPull, RingConsumer
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config
from persia_hpc.protocol.commands import (
    Checkpoint,
    CheckpointDone,
    CheckpointMarked,
    Export,
    Exported,
    Restore,
    Segment,
    SegmentEnd,
    StopSignal,
)
from persia_hpc.protocol.messages import (
    Kind,
    Lookup,
    LookupRows,
    Patch,
    Pull,
    Push,
    PushFirst,
    Rows,
    send,
    try_reserve,
)
from persia_hpc.protocol.wire import WIRES
from persia_hpc.runtime.loop import PollingLoop, RankContext
from persia_hpc.runtime.phases import SERVER, Phases
from persia_hpc.runtime.telemetry import Counts
from persia_hpc.runtime.watchdog import Wait
from persia_hpc.serving.requests import ExportRequest
from persia_hpc.serving.writer import PartWriter
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.records import Record, Spec
from persia_hpc.transport.ring import RingReceiver, RingReceivers, RingSender

from .engine import ParameterServer
from .first import PART_SECONDS, Portion


@dataclass(frozen=True)
class _WorkerRings:
    """Holds the rings between this server and one worker; patches: that of rows but in `fresh`."""

    pulls: RingReceiver
    pushes: RingReceiver
    rows: RingSender
    patches: RingSender


@dataclass(frozen=True)
class _Drained:
    """Holds a request for tables after `request.step`, up to which its worker has pushed all gradients."""

    request: Lookup | Checkpoint | Restore
    worker: int


class ServerLoop:
    """Serves workers until each of them has closed its rings."""

    def __init__(
        self,
        engine: ParameterServer,
        config: Config,
        plane: Plane,
        workers: Sequence[int],
        context: RankContext,
    ):
        """Connects to the workers, whose ranks in the plane's communicator are `workers`, by worker_rank."""
        self.engine = engine
        self.plane = plane
        self.wire = WIRES[config.wire.rows]
        self.fresh = config.mode == "fresh"
        self.workers = [
            _WorkerRings(
                plane.receiver(w, "pull"),
                plane.receiver(w, "push"),
                rows := plane.sender(w, "rows"),
                plane.sender(w, "patch") if self.fresh else rows,
            )
            for w in workers
        ]
        # Of each worker its pulls, then its pushes.
        self._requests = RingReceivers(
            [ring for rings in self.workers for ring in (rings.pulls, rings.pushes)]
        )
        self._remote = any(rings.pushes.remote for rings in self.workers)  # some worker is on another node
        self.phases = Phases(SERVER, config.train.trace)
        self._context = context
        self._loop = PollingLoop(context, self.poll, self._forward_signal)
        self._drained: list[_Drained] = []
        self._aside_bytes = config.checkpoint.aside_bytes
        self._writer: ShardWriter | None = None  # of a checkpoint
        self._writer_step = 0
        self._parts = PartWriter(engine, config.export.rows)
        self._version: ExportRequest | None = None  # to be taken at the clock's mark
        self._last_attempt = 0  # that was taken or refused

    def run(self) -> None:
        """Answers workers until all of them have closed their rings and all answers have been sent."""
        self._context.watchdog.start(lambda: Wait(self.engine.waits_for()))
        self.phases.start()
        self._context.telemetry.begin(self.phases, self._counts)
        # Both rings: a push that found no room may come after the worker's last record on the other ring.
        self._loop.run(
            lambda: all(rings.pulls.closed and rings.pushes.closed for rings in self.workers),
            lambda begin: self.phases.add("idle", begin),
        )
        self.phases.stop()
        self._parts.close()
        senders = {ring for rings in self.workers for ring in (rings.rows, rings.patches)}
        for sender in senders:
            sender.close()
        while any(sender.pending for sender in senders):
            if not self.plane.progress():
                self._context.waiter.idle()

    def _counts(self) -> Counts:
        return self.engine.counts().of_rings(self.plane)

    def poll(self) -> bool:
        """Makes one pass over the rings without waiting; returns whether anything moved."""
        moved = self._receive()
        moved |= self._answer_ready()
        if self.engine.disk_problem is not None:
            self._context.stop.ask()  # for an end with a checkpoint
        moved |= self.plane.progress()
        moved |= self._finish_checkpoint()
        moved |= self._report_parts()
        return moved

    def _forward_signal(self, number: int) -> None:
        send(self.workers[0].rows, StopSignal(number))

    # ---- from workers

    def _receive(self) -> bool:
        moved = False
        for position in self._requests.with_news():
            worker, is_push = divmod(position, 2)
            rings = self.workers[worker]
            while self._take_push(rings.pushes) if is_push else self._take_request(worker, rings.pulls):
                moved = True
        return moved

    def _take_request(self, worker: int, ring: RingReceiver) -> bool:
        """Takes the next request of a worker; returns whether there was one.

        Arrays are copied, since the request may wait and its record may not.
        """
        pull = ring.take(lambda here: self.engine.take_pull(here, Kind.PULL))
        if pull is not None:
            pull.worker = worker
            self.engine.submit_pull(pull)
            return True
        record = ring.poll()
        if record is None:
            return False
        self._take_record(worker, record)
        record.release()
        return True

    def _take_record(self, worker: int, record: Record) -> None:
        kind = record.kind
        if kind == Kind.PULL:  # it came in chunks
            asked = Pull.unpack(record)
            wanted = None if asked.wanted is None else np.array(asked.wanted)
            keys, counts = np.array(asked.keys), np.array(asked.counts)
            self.engine.submit_pull(PendingPull(asked.step, asked.trainer, keys, counts, worker, wanted))
        elif kind == Kind.SEGMENT:
            segment = Segment.unpack(record)
            self.engine.begin_segment(segment.first, segment.last, segment.rate_factor)
        elif kind == Kind.SEGMENT_END:
            self.engine.clock.shorten_segment(SegmentEnd.unpack(record).step)
        elif kind == Kind.LOOKUP:
            lookup = Lookup.unpack(record)
            lookup = replace(lookup, keys=np.array(lookup.keys), counts=np.array(lookup.counts))
            self._drained.append(_Drained(lookup, worker))
        elif kind in (Kind.CHECKPOINT, Kind.RESTORE):
            message: type[Checkpoint] | type[Restore] = Checkpoint if kind == Kind.CHECKPOINT else Restore
            self._drained.append(_Drained(message.unpack(record), worker))
        elif kind == Kind.EXPORT:
            self._begin_export(Export.unpack(record).request)
        else:
            raise ValueError(f"a parameter server got a record of kind {kind}")

    def _take_push(self, ring: RingReceiver) -> bool:
        """Takes the next gradients of a worker; returns whether there were any."""
        begin = time.perf_counter()
        batch = ring.take(self._apply_next) if self.engine.applies_at_once else None
        if batch is None:  # they may have to wait, or came in chunks, or didn't come
            record = ring.poll()
            if record is None:
                return False
            first = record.kind == Kind.PUSH_FIRST
            push = (PushFirst if first else Push).unpack(record)
            batch, submit = (push.step, push.trainer), self.engine.submit_push
            (self.engine.firsts.add if first else submit)(*batch, [np.asarray(g) for g in push.gradients])
            begin = self._send_marked(begin)
            self.engine.apply_ready()
            # Views of the ring must not outlive the record.
            self.engine.detach_push(*batch)
            record.release()
        self.phases.add("push", begin, batch[0], trainer=batch[1])
        return True

    def _apply_next(self, ring: RingConsumer) -> tuple[int, int] | None:
        found = ring.peek(Kind.PUSH)
        if found is None or not self.engine.may_apply_at_once(found[0]):
            return None
        self.engine.apply_next(ring, *found)
        return found

    # ---- to workers

    def _answer_ready(self) -> bool:
        moved = False
        while True:
            pulls = 0
            for pull in self.engine.ready_pulls() if self._has_room_aside() else ():
                begin = time.perf_counter()
                phase = self._answer(pull)
                self.phases.add(phase, begin, pull.step, trainer=pull.trainer)
                pulls += 1
            self._send_marked(time.perf_counter())
            applied = self.engine.apply_ready()
            marked = self._take_version()
            moved |= applied or marked or pulls > 0
            if not (applied or marked):  # an applied step may make more pulls ready
                break
        if self.fresh:
            moved |= self._look_ahead()
        while self._drained and self._drained[0].request.step <= self.engine.clock.applied:
            drained = self._drained.pop(0)
            if isinstance(drained.request, Lookup):
                self._answer_lookup(drained.request, drained.worker)
            elif isinstance(drained.request, Restore):
                self._restore(drained.request)
            else:
                self._begin_checkpoint(drained.request)
            moved = True
        return moved

    def _answer(self, pull: PendingPull) -> str:
        """Sends the final rows of a pull, or what has changed since its early answer; returns the phase."""
        rings, wire = self.workers[pull.worker], self.wire.name
        if self.engine.is_early(pull):
            if not self.engine.finish(pull):
                return "pull"
            self._send_patch(Portion(pull))
            return "patch"
        if not rings.rows.try_write(lambda ring: self.engine.answer_in(ring, pull, Kind.ROWS, wire)):
            # There is no room in the ring for the rows in one piece: they are queued.
            out = [np.empty(shape, dtype) for dtype, shape in self._specs(pull.counts, pull.wanted)]
            staleness = self.engine.answer(pull, out)
            send(rings.rows, Rows(pull.step, pull.trainer, staleness, out))
        if self.fresh:  # workers and trainers expect a patch for each answer
            rows = [np.empty(shape, dtype) for dtype, shape in self._specs(np.zeros_like(pull.counts))]
            send(rings.patches, Patch(pull.step, pull.trainer, [np.empty(0, np.uint32) for _ in rows], rows))
        return "pull"

    def _send_patch(self, portion: Portion) -> None:
        pull, wire = portion.pull, self.wire.name
        sender = self.workers[pull.worker].patches
        if not sender.try_write(lambda ring: self.engine.patch_in(ring, portion, Kind.PATCH, wire)):
            patch = self.engine.patch(portion, wire)
            send(sender, Patch(pull.step, pull.trainer, patch.positions, patch.rows, portion.left))
        sender.progress()  # between nodes records are held back for others, but the next step waits for this

    def _send_marked(self, begin: float) -> float:
        """Sends the patches that need not wait for all updates of their step; returns the time."""
        while self.fresh and (portions := self.engine.apply_marked()):
            begin = self.phases.add("push", begin, portions[0].pull.step - 1)
            begin = self._send_patches(portions, begin)
        return begin

    def _send_patches(self, portions: Sequence[Portion], begin: float) -> float:
        for portion in portions:
            self._send_patch(portion)
            begin = self.phases.add("patch", begin, portion.pull.step, trainer=portion.pull.trainer)
        return begin

    def _look_ahead(self) -> bool:
        """Answers a pull of a later step with the rows of now; only one: a push is more urgent."""
        begin = time.perf_counter()
        if moved := self.engine.mark_next():
            begin = self.phases.add("pull", begin)
        if self._remote:
            wishes = self.engine.want_first(min(rings.pushes.rate for rings in self.workers) * PART_SECONDS)
            for wish in wishes:
                send(self.workers[wish.pull.worker].patches, wish.message())
                begin = self.phases.add("pull", begin)
            begin = self._send_patches(portions := self.engine.final_rows(), begin)
            moved |= bool(wishes or portions)
        pulls = self.engine.early_pulls()[:1]
        for pull in pulls:
            message = Rows(pull.step, pull.trainer, 0)
            self._fill(pull.worker, message, pull.counts, partial(self.engine.answer_early, pull))
            self.phases.add("pull", begin, pull.step, trainer=pull.trainer)
        return moved or bool(pulls)

    def _specs(self, counts: Array, wanted: Array | None = None) -> list[Spec]:
        """Returns dtype and shape of the rows of each dim group."""
        shapes = self.engine.row_shapes(counts, wanted)
        return [(self.wire.dtype, self.wire.shape(*shape)) for shape in shapes]

    def _answer_lookup(self, lookup: Lookup, worker: int) -> None:
        message = LookupRows(lookup.step, lookup.trainer, lookup.number)
        keys, counts = np.asarray(lookup.keys), lookup.counts
        self._fill(worker, message, counts, partial(self.engine.lookup, keys, counts))

    def _fill(
        self, worker: int, message: Rows | LookupRows, counts: Array, fill: Callable[[list[Array]], None]
    ) -> None:
        """Has rows written straight into the ring if there is room, else into queued memory."""
        sender, specs = self.workers[worker].rows, self._specs(counts)
        reserved = try_reserve(sender, message, specs)
        rows = reserved if reserved is not None else [np.empty(shape, dtype) for dtype, shape in specs]
        fill(rows)
        if reserved is not None:
            sender.commit()
        else:
            send(sender, replace(message, rows=rows))

    # ---- checkpoints

    def _begin_checkpoint(self, request: Checkpoint) -> None:
        self._writer = ShardWriter(self.engine, Path(request.path), base_step=request.base_step)
        self._writer_step = request.step
        self._writer.start()
        send(self.workers[0].rows, CheckpointMarked(request.step))

    def _restore(self, request: Restore) -> None:
        self.engine.empty()
        load_rows(Path(request.path), self.engine)
        self.engine.clock.replaced()
        send(self.workers[0].rows, CheckpointMarked(request.step))

    # ---- versions for a service

    def _begin_export(self, request: ExportRequest) -> None:
        """Begins to write a base; a version when its step is applied, until when later steps wait.

        A version that is asked for again in the same attempt is of another step, unless it has been taken:
        then the report says of which step.
        """
        if request.kind != "version":
            self._parts.begin(request)
        elif self._last_attempt == request.attempt:
            return
        elif self.engine.clock.set_mark(request.step):
            self._version = request
        else:
            self._last_attempt = request.attempt
            self._parts.refuse(request)

    def _take_version(self) -> bool:
        """Marks the rows of a version once all updates of its step have been made; returns whether so."""
        if not self.engine.clock.take_mark():
            return False
        assert self._version is not None
        self._last_attempt = self._version.attempt
        self._parts.begin(self._version)
        return True

    def _report_parts(self) -> bool:
        reports = self._parts.finished()
        for report in reports:
            send(self.workers[0].rows, Exported(report))
        return bool(reports)

    def _has_room_aside(self) -> bool:
        """Returns whether pulls may change rows that a checkpoint still has to write.

        Their old values are kept aside, in memory that is limited.
        """
        return self._writer is None or self._writer.kept_bytes < self._aside_bytes

    def _finish_checkpoint(self) -> bool:
        if self._writer is None or not self._writer.done:
            return False
        self._writer = None
        send(self.workers[0].rows, CheckpointDone(self._writer_step))
        return True
