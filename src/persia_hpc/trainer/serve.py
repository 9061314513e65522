"""A trainer's side of the feed plane: the `BatchStream` that a session uses under MPI."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from persia_hpc.config import Config
from persia_hpc.config.types import TransportConfig
from persia_hpc.protocol.row_batch import RowBatch, unpack_row_batch
from persia_hpc.runtime.phases import TRAINER, Phases
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.schedule import Schedule, worker_of
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import SPLITS, Kind, Record
from persia_hpc.transport.ring import RingReceiver, RingSender
from persia_hpc.transport.shared_vector import SharedVector

from .dense.allreduce import DenseReducer
from .dense.shared import SharedDense
from .interfaces import DenseSync

Array = npt.NDArray[Any]
_OTHERS = "the other trainers"


class MpiPeers:
    """The trainers' communicator behind the `Peers` protocol."""

    def __init__(self, comm: MPI.Intracomm, watchdog: Watchdog):
        self._comm = comm
        self._watchdog = watchdog
        self.rank: int = comm.rank
        self.size: int = comm.size

    def broadcast(self, value: Any) -> Any:
        with self._watchdog.waits_for(_OTHERS):
            return self._comm.bcast(value)

    def gather_objects(self, value: Any) -> list[Any] | None:
        with self._watchdog.waits_for(_OTHERS):
            return self._comm.gather(value)

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


def make_reducer(config: Config, comm: MPI.Intracomm, peers: MpiPeers) -> DenseSync:
    """What keeps the dense parameters of the trainers together, whose `comm` is. Collective."""
    if config.mode == "async" and comm.size > 1:
        return SharedDense(peers, partial(SharedVector, comm))
    return DenseReducer(comm, config.train.bucket_bytes)


class RingStream:
    """Batches from the workers' rings, gradients back to them; trainer 0 also commands."""

    def __init__(
        self,
        plane: Plane,
        workers: Sequence[int],
        *,
        trainer_rank: int,
        mine: tuple[int, ...],
        num_dim_groups: int,
        multi: Sequence[str],
        waiter: Waiter,
        stop: StopSignals | None = None,
        watchdog: Watchdog | None = None,
        trace_steps: int | None = None,
    ):
        """`workers`: their ranks in the plane by worker_rank; `mine`: the worker_ranks that feed this
        trainer.
        """
        linked = range(len(workers)) if trainer_rank == 0 else mine
        self.plane = plane
        self.trainer_rank = trainer_rank
        self.mine = mine
        self.num_dim_groups = num_dim_groups
        self.multi = multi
        self.waiter = waiter
        self.wait_seconds = 0.0
        self.phases = Phases(TRAINER, trace_steps)
        self.memory = plane.memory
        self._senders: dict[int, RingSender] = {w: plane.sender(workers[w], "gradients") for w in linked}
        self._receivers: dict[int, RingReceiver] = {w: plane.receiver(workers[w], "feed") for w in linked}
        self._ready: dict[tuple[int, int], RowBatch] = {}
        self._watchdog = watchdog or Watchdog(f"trainer {trainer_rank}", TransportConfig())
        self._first = self._last = 0
        self._ended_at: int | None = None  # the run's last step, once a stop was agreed on
        self._stopping = False
        self._issued: list[int] = []
        self._stop_agreed = False
        self._checkpoints = Counter[int]()  # marked, done
        self._checkpoint_begun = 0
        self._stop = stop or StopSignals()
        self._signal: int | None = None  # that another rank has told of, or that this one has passed on
        self._closing = False

    # ---- segments

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        portion = np.frombuffer(pickle.dumps((schedule, tuple(files))), np.uint8)
        for sender in self._senders.values():
            sender.post(Kind.PORTION, step=schedule.steps_before + 1, arrays=[portion])

    def begin_segment(self, first: int, last: int) -> None:
        if self._ended_at is not None and self._ended_at < first:  # that was a segment before
            self._ended_at = None
        self._first, self._last = first, last if self._ended_at is None else min(last, self._ended_at)
        self._stopping = self._stop_agreed = False
        self._command(Kind.SEGMENT, first, last)

    def next_batch(self, step: int) -> RowBatch | None:
        worker = worker_of(step, self.mine)
        begin = time.perf_counter()
        self._wait(
            lambda: step > self._last or (Kind.FEED, step) in self._ready,
            f"the batch of step {step} from embedding worker {worker}",
        )
        self.phases.add("wait", begin, step)
        return self._ready.pop((Kind.FEED, step), None) if step <= self._last else None

    def peek(self, step: int) -> RowBatch | None:
        self._progress_rings()
        return self._ready.get((Kind.FEED, step)) if step <= self._last else None

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        begin = time.perf_counter()
        sender = self._senders[worker_of(batch.step, self.mine)]
        step = batch.step
        batch.release()
        sender.post(Kind.GRADIENTS, step=step, trainer=self.trainer_rank, arrays=gradients)
        self._progress_rings()
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
            self._command(Kind.STOP_REQUEST, 0)

    def stop_signal(self) -> int | None:
        return self._signal if self._stop.number is None else self._stop.number

    # ---- evaluation, checkpoint, end

    def begin_evaluation(self, split: str, step: int) -> None:
        self._command(Kind.EVALUATE, step, SPLITS.index(split))

    def next_evaluation(self, number: int) -> RowBatch:
        worker = worker_of(number, self.mine)
        self._wait(
            lambda: (Kind.FEED_EVALUATE, number) in self._ready,
            f"evaluation batch {number} from embedding worker {worker}",
        )
        return self._ready.pop((Kind.FEED_EVALUATE, number))

    def begin_checkpoint(self, directory: str, step: int, base_step: int) -> None:
        path = np.frombuffer(directory.encode(), np.uint8)
        self._checkpoint_begun += 1
        # One worker passes it on: each server writes once.
        self._senders[0].post(Kind.CHECKPOINT, step=step, tag=base_step, arrays=[path])
        self._wait(
            lambda: self._checkpoints[Kind.CHECKPOINT_MARKED] == self._checkpoint_begun,
            "the servers, by way of embedding worker 0, to begin a checkpoint",
        )

    def checkpoint_written(self) -> bool:
        return self._checkpoints[Kind.CHECKPOINT_DONE] == self._checkpoint_begun

    def wait_for_checkpoint(self, give_up: Callable[[], bool]) -> None:
        self._wait(
            lambda: self.checkpoint_written() or give_up(),
            "the servers, by way of embedding worker 0, to write the checkpoint",
            patient=True,  # they are as fast as the file system
        )

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        self._wait(done, what, patient=True)

    def close(self) -> None:
        self._closing = True
        for batch in self._ready.values():
            batch.release()
        for sender in self._senders.values():
            sender.close()
        receivers = self._receivers.values()
        self._wait(
            lambda: all(r.closed for r in receivers) and not any(s.pending for s in self._senders.values()),
            "the workers to end",
        )

    def _command(self, kind: Kind, step: int, tag: int = 0) -> None:
        if self.trainer_rank == 0:
            for sender in self._senders.values():
                sender.post(kind, step=step, tag=tag)

    # ---- the loop under all of them

    def _wait(self, done: Callable[[], bool], what: str | None, *, patient: bool = False) -> None:
        begin = time.perf_counter()
        with self._watchdog.waits_for(what, patient=patient):
            while not done():
                if self._progress_rings():
                    self.waiter.busy()
                    self._watchdog.moved()
                else:
                    self._watchdog.idle()
                    self.waiter.idle()
        self.wait_seconds += time.perf_counter() - begin

    def _progress_rings(self) -> bool:
        moved = self.plane.progress()
        tell = self.trainer_rank != 0 and not self._closing
        if tell and self._stop.number is not None and self._signal is None:
            self._signal = self._stop.number
            self._senders[self.mine[0]].post(Kind.STOP_SIGNAL, step=0, tag=self._signal)
        for receiver in self._receivers.values():
            record = receiver.poll()
            if record is not None:
                self._handle_record(record)
                moved = True
        return moved

    def _handle_record(self, record: Record) -> None:
        kind = record.kind
        if (
            self._closing
        ):  # a loop that was left early: what is still on its way is dropped, and counted by the servers
            record.release()
            return
        if kind in (Kind.FEED, Kind.FEED_EVALUATE):
            batch = unpack_row_batch(
                record.step, record.trainer, record.arrays, self.num_dim_groups, self.multi, record
            )
            self._ready[kind, record.step] = batch
            return
        if kind == Kind.ISSUED:
            self._issued.append(record.step)
            if len(self._issued) == len(self._senders):
                # No worker has asked for a step beyond this one, and all can still reach it.
                self._command(Kind.STOP_AT, max(self._first, *self._issued))
                self._stop_agreed = True
        elif kind == Kind.SEGMENT_END:
            # Kept: it may come before this trainer has begun the segment that it ends, or from a slow worker
            # when the next has begun.
            self._ended_at = record.step
            if record.step >= self._first:
                self._last = min(self._last, record.step)
        elif kind in (Kind.CHECKPOINT_MARKED, Kind.CHECKPOINT_DONE):
            self._checkpoints[kind] += 1
        elif kind == Kind.STOP_SIGNAL:
            self._signal = record.tag
        else:
            raise ValueError(f"a trainer got a record of kind {kind}")
        record.release()
