"""Runs a parameter server rank: the engine behind the rings of the row plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config
from persia_hpc.protocol.commands import (
    Checkpoint,
    CheckpointDone,
    CheckpointMarked,
    Segment,
    SegmentEnd,
    StopSignal,
)
from persia_hpc.protocol.messages import Kind, Lookup, LookupRows, Pull, Push, Rows, send, try_reserve
from persia_hpc.protocol.wire import WIRES
from persia_hpc.runtime.loop import PollingLoop, RankContext
from persia_hpc.runtime.phases import SERVER, Phases
from persia_hpc.runtime.watchdog import Wait
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.records import Record, Spec
from persia_hpc.transport.ring import RingReceiver, RingSender

from .engine import ParameterServer, PendingPull


@dataclass(frozen=True)
class _WorkerRings:
    """Holds the three rings between this server and one worker."""

    pulls: RingReceiver
    pushes: RingReceiver
    rows: RingSender


@dataclass(frozen=True)
class _Drained:
    """Holds a request that needs the tables as they are after `request.step`.

    The worker that asks has pushed all gradients up to that step; other workers may not have.
    """

    request: Lookup | Checkpoint
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
        self.workers = [
            _WorkerRings(plane.receiver(w, "pull"), plane.receiver(w, "push"), plane.sender(w, "rows"))
            for w in workers
        ]
        self.phases = Phases(SERVER, config.train.trace)
        self._context = context
        self._loop = PollingLoop(context, self.poll, self._forward_signal)
        self._drained: list[_Drained] = []
        self._aside_bytes = config.checkpoint.aside_bytes
        self._writer: ShardWriter | None = None  # of a checkpoint
        self._writer_step = 0

    def run(self) -> None:
        """Answers workers until all of them have closed their rings and all answers have been sent."""
        self._context.watchdog.start(lambda: Wait(self.engine.waits_for()))
        self.phases.start()
        # Both rings: a push that found no room may come after the worker's last record on the other ring.
        self._loop.run(
            lambda: all(rings.pulls.closed and rings.pushes.closed for rings in self.workers),
            lambda begin: self.phases.add("idle", begin),
        )
        self.phases.stop()
        for rings in self.workers:
            rings.rows.close()
        while any(rings.rows.pending for rings in self.workers):
            if not self.plane.progress():
                self._context.waiter.idle()

    def poll(self) -> bool:
        """Makes one pass over the rings without waiting; returns whether anything moved."""
        moved = self._receive()
        moved |= self._answer_ready()
        moved |= self.plane.progress()
        moved |= self._finish_checkpoint()
        return moved

    def _forward_signal(self, signal: int) -> None:
        send(self.workers[0].rows, StopSignal(signal))

    # ---- from workers

    def _receive(self) -> bool:
        moved = False
        for worker, rings in enumerate(self.workers):
            while (record := rings.pulls.poll()) is not None:
                self._take_request(worker, record)
                record.release()
                moved = True
            while (record := rings.pushes.poll()) is not None:
                self._take_push(record)
                moved = True
        return moved

    def _take_request(self, worker: int, record: Record) -> None:
        """Takes what a worker asks for; copies arrays, since the request may wait and its record may not."""
        kind = record.kind
        if kind == Kind.PULL:
            pull = Pull.unpack(record)
            wanted = None if pull.wanted is None else np.array(pull.wanted)
            self.engine.submit_pull(
                PendingPull(
                    pull.step, pull.trainer, np.array(pull.keys), np.array(pull.counts), worker, wanted
                )
            )
        elif kind == Kind.SEGMENT:
            segment = Segment.unpack(record)
            self.engine.begin_segment(segment.first, segment.last, segment.rate_factor)
        elif kind == Kind.SEGMENT_END:
            self.engine.clock.shorten_segment(SegmentEnd.unpack(record).step)
        elif kind == Kind.LOOKUP:
            lookup = Lookup.unpack(record)
            lookup = replace(lookup, keys=np.array(lookup.keys), counts=np.array(lookup.counts))
            self._drained.append(_Drained(lookup, worker))
        elif kind == Kind.CHECKPOINT:
            self._drained.append(_Drained(Checkpoint.unpack(record), worker))
        else:
            raise ValueError(f"a parameter server got a record of kind {kind}")

    def _take_push(self, record: Record) -> None:
        begin = time.perf_counter()
        push = Push.unpack(record)
        self.engine.submit_push(push.step, push.trainer, [np.asarray(g) for g in push.gradients])
        self.engine.apply_ready()
        # Views of the ring must not outlive the record.
        self.engine.detach_push(push.step, push.trainer)
        self.phases.add("push", begin, push.step)
        record.release()

    # ---- to workers

    def _answer_ready(self) -> bool:
        moved = False
        while True:
            pulls = 0
            for pull in self.engine.ready_pulls() if self._has_room_aside() else ():
                begin = time.perf_counter()
                self._answer(pull)
                self.phases.add("pull", begin, pull.step)
                pulls += 1
            applied = self.engine.apply_ready()
            moved |= applied or pulls > 0
            if not applied:  # an applied step may make more pulls ready
                break
        while self._drained and self._drained[0].request.step <= self.engine.clock.applied:
            drained = self._drained.pop(0)
            if isinstance(drained.request, Lookup):
                self._answer_lookup(drained.request, drained.worker)
            else:
                self._begin_checkpoint(drained.request)
            moved = True
        return moved

    def _answer(self, pull: PendingPull) -> None:
        """Answers a pull without a copy.

        The engine calls back with the room in the ring, so that the table writes the rows where the record
        will lie.
        """
        # It goes into the header before the rows are there: the clock alone decides it.
        staleness = self.engine.clock.staleness(pull.step, pull.trainer)
        self._send_rows(
            self.workers[pull.worker].rows,
            Rows(pull.step, pull.trainer, staleness),
            shapes=self.engine.row_shapes(pull.counts, pull.wanted),
            fill=lambda out: self.engine.answer(pull, out),
        )

    def _answer_lookup(self, lookup: Lookup, worker: int) -> None:
        self._send_rows(
            self.workers[worker].rows,
            LookupRows(lookup.step, lookup.trainer, lookup.number),
            shapes=self.engine.row_shapes(lookup.counts),
            fill=lambda out: self.engine.lookup(np.asarray(lookup.keys), lookup.counts, out),
        )

    def _send_rows(
        self,
        sender: RingSender,
        message: Rows | LookupRows,
        *,
        shapes: Sequence[tuple[int, int]],
        fill: Callable[[list[Array]], object],
    ) -> None:
        """Lets `fill` write the rows straight into the ring if there is room, else into queued memory."""
        specs: list[Spec] = [(self.wire.dtype, self.wire.shape(*shape)) for shape in shapes]
        reserved = try_reserve(sender, message, specs)
        if reserved is not None:
            fill(reserved)
            sender.commit()
            return
        out: list[Array] = [np.empty(shape, dtype) for dtype, shape in specs]
        fill(out)
        send(sender, replace(message, rows=out))

    # ---- checkpoints

    def _begin_checkpoint(self, request: Checkpoint) -> None:
        self._writer = ShardWriter(self.engine, Path(request.path), base_step=request.base_step)
        self._writer_step = request.step
        self._writer.start()
        send(self.workers[0].rows, CheckpointMarked(request.step))

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
