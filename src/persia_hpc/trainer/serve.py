"""Connects a trainer to the feed plane: the `BatchStream` that a session uses under MPI."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Array
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
    StopRequest,
    StopSignal,
)
from persia_hpc.protocol.messages import Feed, FeedEvaluate, Gradients, Kind, Message, Patch, send
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.loop import PollingLoop, RankContext
from persia_hpc.runtime.phases import TRAINER, Phases
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.schedule import Schedule, worker_of
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.table_layout import Layout
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.records import Record
from persia_hpc.transport.ring import RingReceiver, RingSender
from persia_hpc.transport.shared_vector import share_vector

from .dense.allreduce import make_dense_reducer
from .dense.reducers import make_sums
from .dense.shared import SharedDense
from .interfaces import DenseSync
from .patches import EarlyBatches


class MpiPeers:
    """Connects trainers through their communicator. See `Peers`."""

    def __init__(self, comm: MPI.Intracomm, watchdog: Watchdog):
        self._comm = comm
        self._watchdog = watchdog
        self.rank: int = comm.rank
        self.size: int = comm.size

    def broadcast(self, value: Any) -> Any:
        with self.wait():
            return self._comm.bcast(value)

    def gather_objects(self, value: Any) -> list[Any] | None:
        with self.wait():
            return self._comm.gather(value)

    def wait(self) -> AbstractContextManager[None]:
        return self._watchdog.waits_for("the other trainers")

    def meet(self) -> Callable[[], bool]:
        request = self._comm.Ibarrier()
        return lambda: bool(request.Test())

    def gather(self, array: Array) -> Array | None:
        counts = self.gather_objects(array.shape)
        array = np.ascontiguousarray(array)
        if counts is None:
            self._comm.Gatherv([array.view(np.uint8).reshape(-1), MPI.BYTE], None)
            return None
        sizes = [int(np.prod(shape)) * array.itemsize for shape in counts]
        whole = np.empty((sum(shape[0] for shape in counts), *array.shape[1:]), array.dtype)
        received = whole.reshape(-1).view(np.uint8)
        self._comm.Gatherv([array.reshape(-1).view(np.uint8), MPI.BYTE], [received, sizes, None, MPI.BYTE])
        return whole


def make_reducer(config: Config, comm: MPI.Intracomm, peers: MpiPeers, spin: float) -> DenseSync:
    """Returns what keeps the dense parameters of the trainers equal.

    spin: seconds, before a trainer that waits for others sleeps.
    Collective over the trainers, whose communicator is `comm`.
    """
    memory_grows = config.transport.memory_grows
    if config.mode == "async" and comm.size > 1:
        return SharedDense(peers, partial(share_vector, comm, memory_grows=memory_grows))
    sums = make_sums(config.train, comm, memory_grows=memory_grows, spin=spin)
    return make_dense_reducer(config.train, sums, peers)


@dataclass(frozen=True)
class FeedingWorkers:
    """Says which workers a trainer is linked to.

    ranks: of all workers in the feed plane's communicator, by worker_rank. mine: the worker_ranks that feed
    this trainer.
    """

    ranks: Sequence[int]
    mine: tuple[int, ...]
    trainer_rank: int

    @property
    def linked(self) -> Sequence[int]:
        """Returns the worker_ranks with rings to this trainer: all for trainer 0, which commands them."""
        return range(len(self.ranks)) if self.trainer_rank == 0 else self.mine


class RingStream:
    """Exchanges batches and gradients with the workers' rings; trainer 0 also commands. See `BatchStream`."""

    alone = False

    def __init__(
        self,
        plane: Plane,
        layout: Layout,
        workers: FeedingWorkers,
        context: RankContext,
        trace_steps: int | None = None,
        *,
        fresh: bool = False,
    ):
        """Connects to this trainer's ends of the rings; `trace_steps` as in `Phases`.

        fresh: batches come ahead of their step, and patches for them by rings of their own.
        """
        self.plane = plane
        self.trainer_rank = workers.trainer_rank
        self.mine = workers.mine
        self.multi, self.weighted = layout.bags, layout.weighted
        self.wait_seconds = 0.0
        self.phases = Phases(TRAINER, trace_steps, trainer=self.trainer_rank)
        self.memory = plane.memory
        ranks = workers.ranks
        self._senders: dict[int, RingSender] = {
            w: plane.sender(ranks[w], "gradients") for w in workers.linked
        }
        self._receivers: list[RingReceiver] = [plane.receiver(ranks[w], "feed") for w in workers.linked]
        if fresh:
            self._receivers += [plane.receiver(ranks[w], "patch") for w in workers.mine]
        self._early = EarlyBatches() if fresh else None
        self._ready: dict[int, RowBatch] = {}  # by step
        self._ready_evaluation: dict[int, RowBatch] = {}  # by number
        self._watchdog = context.watchdog
        self._stop = context.stop
        self._loop = PollingLoop(context, self._poll, self._forward_signal)
        self._first = self._last = 0
        self._ended_at: int | None = None  # the run's last step, once a stop was agreed on
        self._stopping = False
        self._issued: list[int] = []
        self._stop_agreed = False
        self._checkpoints_begun = 0
        self._checkpoints_marked = 0
        self._checkpoints_done = 0
        self._signal: int | None = None  # that another rank has reported, or that this one has forwarded
        self._closing = False
        self._exported: list[ExportReport] = []

    # ---- segments

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        self._command(Portion(schedule, tuple(files)))

    def begin_segment(self, first: int, last: int, rate_factor: float) -> None:
        if self._ended_at is not None and self._ended_at < first:  # that was a segment before
            self._ended_at = None
        self._first, self._last = first, last if self._ended_at is None else min(last, self._ended_at)
        self._stopping = self._stop_agreed = False
        self._command(Segment(first, last, rate_factor))

    def early(self, step: int) -> RowBatch | None:
        if (early := self._early) is None:
            return None
        self._wait_for(step, lambda: step in self._ready or early.get(step) is not None)
        return (self._ready.get(step) or early.get(step)) if step <= self._last else None

    def next_batch(self, step: int) -> RowBatch | None:
        self._wait_for(step, lambda: step in self._ready)
        return self._ready.pop(step, None) if step <= self._last else None

    def _wait_for(self, step: int, there: Callable[[], bool]) -> None:
        worker = worker_of(step, self.mine)
        begin = time.perf_counter()
        self._wait(
            lambda: step > self._last or there(),
            f"the batch of step {step} from embedding worker {worker}",
        )
        self.phases.add("wait", begin, step)

    def peek(self, step: int) -> RowBatch | None:
        self._loop.poll()
        return self._ready.get(step) if step <= self._last else None

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        begin = time.perf_counter()
        sender = self._senders[worker_of(batch.step, self.mine)]
        step = batch.step
        batch.release()
        send(sender, Gradients(step, self.trainer_rank, gradients))
        self._loop.poll()
        self.phases.add("push", begin, step)

    def end_segment(self) -> None:
        if self._stopping:
            self._wait(lambda: self._stop_agreed, "the workers to agree on the last step")
        self._wait(
            lambda: not any(s.pending for s in self._senders.values()), "room for gradients at the workers"
        )

    def request_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._issued = []
            self._command(StopRequest())

    def stop_signal(self) -> int | None:
        return self._signal if self._stop.number is None else self._stop.number

    # ---- evaluation, checkpoint, end

    def begin_evaluation(self, split: str, step: int) -> None:
        self._command(Evaluate(split, step))

    def next_evaluation(self, number: int) -> RowBatch:
        worker = worker_of(number, self.mine)
        self._wait(
            lambda: number in self._ready_evaluation,
            f"evaluation batch {number} from embedding worker {worker}",
        )
        return self._ready_evaluation.pop(number)

    def begin_checkpoint(self, directory: str, step: int, base_step: int) -> None:
        self._checkpoints_begun += 1
        # One worker tells the servers: each of them writes once.
        send(self._senders[0], Checkpoint(directory, step, base_step))
        self._wait(
            lambda: self._checkpoints_marked == self._checkpoints_begun,
            "the servers, by way of embedding worker 0, to begin a checkpoint",
        )

    def checkpoint_written(self) -> bool:
        return self._checkpoints_done == self._checkpoints_begun

    def wait_for_checkpoint(self, give_up: Callable[[], bool]) -> None:
        self._wait(
            lambda: self.checkpoint_written() or give_up(),
            "the servers, by way of embedding worker 0, to write the checkpoint",
            patient=True,  # they are as fast as the file system
        )

    def restore(self, directory: str, step: int) -> None:
        self._checkpoints_begun += 1
        self._checkpoints_done += 1  # nothing is written
        send(self._senders[0], Restore(directory, step))
        self._wait(
            lambda: self._checkpoints_marked == self._checkpoints_begun,
            "the servers, by way of embedding worker 0, to read the best checkpoint",
            patient=True,  # as fast as the file system
        )

    def begin_export(self, request: ExportRequest) -> None:
        send(self._senders[0], Export(request))

    def exported(self) -> list[ExportReport]:
        reports, self._exported = self._exported, []
        return reports

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        self._wait(done, what, patient=True)

    def close(self) -> None:
        self._closing = True
        for batch in (*self._ready.values(), *self._ready_evaluation.values()):
            batch.release()
        if self._early is not None:
            self._early.release()
        for sender in self._senders.values():
            sender.close()
        receivers = self._receivers
        self._wait(
            lambda: all(r.closed for r in receivers) and not any(s.pending for s in self._senders.values()),
            "the workers to end",
        )

    def _command(self, command: Message) -> None:
        if self.trainer_rank == 0:
            for sender in self._senders.values():
                send(sender, command)

    # ---- the loop under all of them

    def _wait(self, done: Callable[[], bool], what: str | None, *, patient: bool = False) -> None:
        begin = time.perf_counter()
        with self._watchdog.waits_for(what, patient=patient):
            self._loop.run(done)
        self.wait_seconds += time.perf_counter() - begin

    def _poll(self) -> bool:
        moved = self.plane.progress()
        for receiver in self._receivers:
            record = receiver.poll()
            if record is not None:
                self._take(record)
                moved = True
        return moved

    def _forward_signal(self, signal: int) -> None:
        if self.trainer_rank != 0 and not self._closing:
            self._signal = signal
            send(self._senders[self.mine[0]], StopSignal(signal))

    def _take(self, record: Record) -> None:
        kind = record.kind
        if self._closing:  # a loop that was left early: its batches are dropped, and the servers count them
            record.release()
        elif kind == Kind.FEED:
            batch = Feed.unpack(record, self.multi, self.weighted)
            self._make_ready(batch if self._early is None else self._early.add(batch))
        elif kind == Kind.PATCH and self._early is not None:
            self._make_ready(self._early.patch(Patch.unpack(record)))
            record.release()
        elif kind == Kind.FEED_EVALUATE:
            self._ready_evaluation[record.step] = FeedEvaluate.unpack(record, self.multi, self.weighted)
        else:
            self._take_report(record)
            record.release()

    def _make_ready(self, batch: RowBatch | None) -> None:
        if batch is not None:
            self._ready[batch.step] = batch

    def _take_report(self, record: Record) -> None:
        kind = record.kind
        if kind == Kind.ISSUED:
            self._issued.append(Issued.unpack(record).step)
            if len(self._issued) == len(self._senders):
                # No worker has asked for a step beyond this one, and all can still reach it.
                self._command(StopAt(max(self._first, *self._issued)))
                self._stop_agreed = True
        elif kind == Kind.SEGMENT_END:
            # Kept: it may come before this trainer has begun the segment that it ends, or from a slow worker
            # when the next has begun.
            last = self._ended_at = SegmentEnd.unpack(record).step
            if last >= self._first:
                self._last = min(self._last, last)
        elif kind == Kind.CHECKPOINT_MARKED:
            CheckpointMarked.unpack(record)
            self._checkpoints_marked += 1
        elif kind == Kind.CHECKPOINT_DONE:
            CheckpointDone.unpack(record)
            self._checkpoints_done += 1
        elif kind == Kind.EXPORTED:
            self._exported.append(Exported.unpack(record).report)
        elif kind == Kind.STOP_SIGNAL:
            self._signal = StopSignal.unpack(record).signal
        else:
            raise ValueError(f"a trainer got a record of kind {kind}")
