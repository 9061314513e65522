"""A parameter server rank: the engine behind the rings of the row plane."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config
from persia_hpc.protocol.wire import WIRES
from persia_hpc.runtime.phases import SERVER, Phases
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import Kind, Record
from persia_hpc.transport.ring import RingReceiver, RingSender

from .engine import Array, ParameterServer, Pull


@dataclass
class _Link:
    """The three rings between this server and one worker."""

    pulls: RingReceiver
    pushes: RingReceiver
    rows: RingSender


@dataclass
class _Drained:
    """A request that needs the tables as they are after `step`: its asker has pushed all of it, others may
    not have.
    """

    kind: int
    step: int
    trainer: int
    tag: int
    arrays: list[Array]
    link: int


class ServerLoop:
    """Serves workers until each of them has closed its rings."""

    def __init__(
        self,
        engine: ParameterServer,
        plane: Plane,
        workers: Sequence[int],
        waiter: Waiter,
        config: Config,
        stop: StopSignals,
        watchdog: Watchdog,
    ):
        """`workers`: ranks of the workers in the plane's communicator, by worker_rank."""
        self.engine = engine
        self.plane = plane
        self.waiter = waiter
        self.wire = WIRES[config.wire.rows]
        self.links = [
            _Link(plane.receiver(w, "pull"), plane.receiver(w, "push"), plane.sender(w, "rows"))
            for w in workers
        ]
        self.phases = Phases(SERVER, config.train.trace)
        self.watchdog = watchdog
        watchdog.describe = engine.waits_for
        self._drained: list[_Drained] = []
        self._stop = stop
        self._signal_sent = False
        self._aside_bytes = config.checkpoint.aside_bytes
        self._writer: ShardWriter | None = None  # of a checkpoint
        self._writer_step = 0

    def run(self) -> None:
        """Returns when all workers have closed; collective in effect, not in MPI's sense."""
        self.phases.start()
        # Both: a push that found no room may come after the worker's last word on the other ring.
        while not all(link.pulls.closed and link.pushes.closed for link in self.links):
            begin = time.perf_counter()
            moved = self._receive()
            moved |= self._serve()
            moved |= self.plane.progress()
            moved |= self._finish_checkpoint()
            if self._stop.number is not None and not self._signal_sent:
                self._signal_sent = True
                self.links[0].rows.post(Kind.STOP_SIGNAL, step=0, tag=self._stop.number)
            if moved:
                self.waiter.busy()
                self.watchdog.moved()
            else:
                self.watchdog.idle()
                self.waiter.idle()
                self.phases.add("idle", begin)
        self.phases.stop()
        for link in self.links:
            link.rows.close()
        while any(link.rows.pending for link in self.links):
            if not self.plane.progress():
                self.waiter.idle()

    def _receive(self) -> bool:
        moved = False
        for index, link in enumerate(self.links):
            while (record := link.pulls.poll()) is not None:
                self._request(index, record)
                moved = True
            while (record := link.pushes.poll()) is not None:
                begin = time.perf_counter()
                self.engine.submit_push(record.step, record.trainer, list(record.arrays))
                self.engine.apply_ready()
                # Views of the ring must not outlive the record.
                self.engine.detach_push(record.step, record.trainer)
                self.phases.add("push", begin, record.step)
                record.release()
                moved = True
        return moved

    def _request(self, index: int, record: Record) -> None:
        kind = record.kind
        if kind == Kind.PULL:
            keys, counts, *rest = (np.array(a) for a in record.arrays)
            wanted = rest[0] if rest else None
            self.engine.submit_pull(Pull(record.step, record.trainer, keys, counts, index, wanted))
            record.release()
        elif kind == Kind.SEGMENT:
            self.engine.clock.begin_segment(record.step, record.tag)
            record.release()
        elif kind == Kind.SEGMENT_END:
            self.engine.clock.shorten_segment(record.step)
            record.release()
        elif kind in (Kind.LOOKUP, Kind.CHECKPOINT):
            arrays = [np.array(a) for a in record.arrays]
            self._drained.append(_Drained(kind, record.step, record.trainer, record.tag, arrays, index))
            record.release()
        else:
            raise ValueError(f"a parameter server got a record of kind {kind}")

    def _serve(self) -> bool:
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
        while self._drained and self._drained[0].step <= self.engine.clock.applied:
            request = self._drained.pop(0)
            if request.kind == Kind.LOOKUP:
                self._lookup(request)
            else:
                path = Path(request.arrays[0].tobytes().decode())
                self._writer = ShardWriter(self.engine, path, base_step=request.tag)
                self._writer_step = request.step
                self._writer.start()
                self.links[0].rows.post(Kind.CHECKPOINT_MARKED, step=request.step)
            moved = True
        return moved

    def _has_room_aside(self) -> bool:
        """Whether pulls may change rows that a checkpoint still has to write: old rows are kept, but not
        without end.
        """
        return self._writer is None or self._writer.kept_bytes < self._aside_bytes

    def _finish_checkpoint(self) -> bool:
        if self._writer is None or not self._writer.done:
            return False
        self._writer = None
        self.links[0].rows.post(Kind.CHECKPOINT_DONE, step=self._writer_step)
        return True

    def _answer(self, pull: Pull) -> None:
        sender = self.links[pull.reply_to].rows
        shapes = self.engine.row_shapes(pull.counts, pull.wanted)
        # The record's `tag` carries the staleness, which the clock alone decides.
        staleness = self.engine.clock.staleness(pull.step, pull.trainer)
        self._produce(
            sender,
            Kind.ROWS,
            pull.step,
            pull.trainer,
            staleness,
            shapes,
            lambda out: self.engine.answer(pull, out),
        )

    def _lookup(self, request: _Drained) -> None:
        keys, counts = request.arrays
        self._produce(
            self.links[request.link].rows,
            Kind.LOOKUP_ROWS,
            request.step,
            request.trainer,
            request.tag,
            self.engine.row_shapes(counts),
            lambda out: self.engine.lookup(keys, counts, out),
        )

    def _produce(
        self,
        sender: RingSender,
        kind: Kind,
        step: int,
        trainer: int,
        tag: int,
        shapes: list[tuple[int, int]],
        fill: Any,
    ) -> None:
        """Lets `fill` write the rows straight into the ring when there is room, else into memory that is
        queued.
        """
        specs: list[tuple[Any, tuple[int, int]]] = [
            (self.wire.dtype, self.wire.shape(*shape)) for shape in shapes
        ]
        reserved = sender.try_reserve(kind, step=step, trainer=trainer, tag=tag, specs=specs)
        if reserved is not None:
            fill(reserved)
            sender.commit()
            return
        out: list[Array] = [np.empty(shape, dtype) for dtype, shape in specs]
        fill(out)
        sender.post(kind, step=step, trainer=trainer, tag=tag, arrays=out)
