"""An embedding worker rank: the engine between the rings of the row plane and those of the feed plane.

Trainer 0 drives: it announces segments of steps, evaluations, checkpoints and the end; every worker passes on
what its servers must know. Nothing here ever blocks on one peer.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persia_hpc.checkpoint.files import shard_name
from persia_hpc.config import Config
from persia_hpc.protocol.row_batch import pack_row_batch
from persia_hpc.runtime.phases import WORKER, Phases
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.samples.reader import PrefetchReader
from persia_hpc.samples.source import Source
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.schedule import batches_of_worker, make_schedules
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import SPLITS, Kind, Record
from persia_hpc.transport.ring import RingReceiver, RingSender

from .engine import EmbeddingWorker, KeyBatch

MAX_QUEUED_FEEDS = 2  # evaluation batches that may wait for room in a trainer's ring


@dataclass
class _Server:
    pulls: RingSender
    pushes: RingSender
    rows: RingReceiver


@dataclass
class _Trainer:
    feed: RingSender
    gradients: RingReceiver


@dataclass
class _Work:
    """A stretch of batches that are being read and asked for: a training segment or an evaluation."""

    reader: PrefetchReader[tuple[int, int]]
    requests: deque[tuple[int, int]]  # (step, trainer) not asked for yet, in order
    evaluation: bool
    step: int = 0  # evaluation: the step whose updates the rows must have
    first: int = 0  # segment: its first step


class WorkerLoop:
    """Serves trainers until each of them has closed its rings."""

    def __init__(
        self,
        engine: EmbeddingWorker,
        config: Config,
        sources: Mapping[str, Source],
        *,
        worker_rank: int,
        workers_of_trainer: Sequence[tuple[int, ...]],
        row_plane: Plane,
        servers: Sequence[int],
        feed_plane: Plane,
        trainers: Sequence[int],
        waiter: Waiter,
        stop: StopSignals,
        watchdog: Watchdog,
    ):
        """`servers` and `trainers`: their ranks in the planes' communicators, by server_rank and
        trainer_rank.
        """
        self.engine = engine
        self.config = config
        self.worker_rank = worker_rank
        self.workers_of_trainer = workers_of_trainer
        self.planes = (row_plane, feed_plane)
        self.waiter = waiter
        self.servers = [
            _Server(row_plane.sender(s, "pull"), row_plane.sender(s, "push"), row_plane.receiver(s, "rows"))
            for s in servers
        ]
        mine = {i for i, workers in enumerate(workers_of_trainer) if worker_rank in workers} | {0}
        self.trainers = {
            i: _Trainer(feed_plane.sender(trainers[i], "feed"), feed_plane.receiver(trainers[i], "gradients"))
            for i in sorted(mine)
        }
        counts = {split: source.num_samples for split, source in sources.items()}
        self.splits = SplitReaders(config, sources, make_schedules(config, counts))
        self.window = config.pull_bound + config.data.prefetch
        self.work: _Work | None = None
        # Announced while this worker was still busy with the stretch before: trainer 0 may be ahead of it.
        self.upcoming: deque[tuple[Kind, int, int]] = deque()
        self.limit: int | None = None  # a stop is being agreed on: until then no further than this step
        self.issued = 0
        self.in_flight: dict[tuple[int, int], KeyBatch] = {}  # pulled, gradients not back yet
        self.looked_up: dict[tuple[int, int], KeyBatch] = {}
        self.held: deque[Record] = deque()  # gradient records that queued pushes still point into
        self.ended = False
        self.first_pull: dict[int, float] = {}
        self.phases = Phases(WORKER, config.train.trace)
        self._stop = stop
        self._signal_sent = False
        self._saving: dict[Kind, set[int]] = {}  # servers that have not marked, or written, the checkpoint
        self.watchdog = watchdog
        watchdog.describe = self._waits_for

    def run(self) -> None:
        """Returns when all trainers have closed their rings and all that was queued has been sent."""
        self.phases.start()
        senders = self._senders()
        while not (self.ended and all(s.rows.closed for s in self.servers)) or any(
            s.pending for s in senders
        ):
            begin = time.perf_counter()
            moved = self._poll_trainers()
            moved |= self._poll_servers()
            moved |= self._issue()
            if self._stop.number is not None and not self._signal_sent and not self.ended:
                self._signal_sent = True
                self.trainers[0].feed.post(Kind.STOP_SIGNAL, step=0, tag=self._stop.number)
            for plane in self.planes:
                moved |= plane.progress()
            self._release_held()
            if moved:
                self.waiter.busy()
                self.watchdog.moved()
                continue
            self.watchdog.idle()
            self.waiter.idle()
            self.phases.add("read" if self.work is not None and self._may_issue() else "idle", begin)
        self.phases.stop()

    def _senders(self) -> list[RingSender]:
        return [s for server in self.servers for s in (server.pulls, server.pushes)] + [
            t.feed for t in self.trainers.values()
        ]

    def _waits_for(self) -> str | None:
        self.watchdog.patient = False
        for what, batches in (("step", self.in_flight), ("evaluation batch", self.looked_up)):
            if batches:
                (number, trainer), batch = min(batches.items())
                if batch.missing:
                    return f"rows of {what} {number} from parameter server {batch.waits_for}"
                return f"the gradients of {what} {number} from trainer {trainer}"
        for kind, what in ((Kind.CHECKPOINT_MARKED, "begin"), (Kind.CHECKPOINT_DONE, "write")):
            if self.work is None and (late := self._saving.get(kind)):
                self.watchdog.patient = what == "write"  # as fast as the file system
                return f"parameter server {', '.join(map(str, late))} to {what} a checkpoint"
        self.watchdog.patient = True  # a loop of the user's own may do something else
        if self.ended or self.work is not None or self.config.data.follow:  # which waits for files, itself
            return None
        return "a command from trainer 0"

    # ---- from trainers

    def _poll_trainers(self) -> bool:
        moved = False
        for trainer in self.trainers.values():
            while (record := trainer.gradients.poll()) is not None:
                moved = True
                if record.kind == Kind.GRADIENTS:
                    self._push(record)
                else:
                    self._command(record)
                    record.release()
        if not self.ended and all(t.gradients.closed for t in self.trainers.values()):
            # Only now: while trainer 0 was at its end already, another's last gradients may have been on
            # their way.
            for sender in self._senders():
                sender.close()
            self.ended = True
            if self.work is not None:  # a loop of the user's own that was left early
                self.work.reader.close()
                self.work = None
        return moved

    def _push(self, record: Record) -> None:
        begin = time.perf_counter()
        batch = self.in_flight.pop((record.step, record.trainer))
        for p, server in enumerate(self.servers):
            parts = self.engine.push(batch, p, record.arrays)
            server.pushes.post(Kind.PUSH, step=record.step, trainer=record.trainer, arrays=list(parts))
        self.held.append(record)
        self._release_held()
        self.phases.add("push", begin, record.step)

    def _release_held(self) -> None:
        if self.held and not any(server.pushes.pending for server in self.servers):
            while self.held:
                self.held.popleft().release()

    def _command(self, record: Record) -> None:
        kind = record.kind
        if kind in (Kind.SEGMENT, Kind.EVALUATE):
            self.upcoming.append((Kind(kind), record.step, record.tag))
            self._finish_if_done()
        elif kind == Kind.PORTION:
            self.splits.begin_portion(*pickle.loads(record.arrays[0].tobytes()))
        elif kind == Kind.STOP_REQUEST:
            # Not at once: trainer 0 may be in an AllReduce with one that waits for its batch.
            left = self.work.requests[-1][0] if self.work and not self.work.evaluation else self.issued
            self.limit = max(self.issued, min(self.issued + 2 * (self.window + 2), left))
            self.trainers[0].feed.post(Kind.ISSUED, step=self.limit)
        elif kind == Kind.STOP_AT:
            self._shorten(record.step)
        elif kind == Kind.CHECKPOINT:
            directory = record.arrays[0].tobytes().decode()
            for kind in (Kind.CHECKPOINT_MARKED, Kind.CHECKPOINT_DONE):
                self._saving[kind] = set(range(len(self.servers)))
            for p, server in enumerate(self.servers):
                path = np.frombuffer(f"{directory}/{shard_name(p)}".encode(), np.uint8)
                server.pulls.post(Kind.CHECKPOINT, step=record.step, tag=record.tag, arrays=[path])
        elif kind == Kind.STOP_SIGNAL:
            self.trainers[0].feed.post(Kind.STOP_SIGNAL, step=0, tag=record.tag)
        else:
            raise ValueError(f"an embedding worker got a record of kind {kind}")

    def _mine(self, first: int, last: int) -> list[tuple[int, int]]:
        return batches_of_worker(self.worker_rank, self.workers_of_trainer, first, last)

    def _read(self, split: str, requests: Sequence[tuple[int, int]]) -> PrefetchReader[tuple[int, int]]:
        schedule, num_trainers = self.splits.schedules[split], len(self.workers_of_trainer)
        return PrefetchReader(
            self.splits.readers[split],
            (
                ((step, trainer), schedule.step(step).epoch, *schedule.part(step, trainer, num_trainers))
                for step, trainer in requests
            ),
            depth=2 * max(1, len(self.trainers)),
            on_ready=self.waiter.wake,
        )

    def _begin_segment(self, first: int, last: int) -> None:
        if first > 1:  # a pause is over: reading the first batch is part of training again
            self.first_pull[first] = time.time()
        requests = self._mine(first, last)
        self.work = _Work(self._read("train", requests), deque(requests), evaluation=False, first=first)
        self.issued = first - 1
        self.limit = None
        self.engine.forget_rows()
        for server in self.servers:
            server.pulls.post(Kind.SEGMENT, step=first, tag=last)

    def _shorten(self, last: int) -> None:
        """All ranks stop after step `last`, which no worker has gone beyond."""
        self.limit = None
        # An evaluation may have begun meanwhile: a segment that ended by itself in the end.
        if self.work is not None and not self.work.evaluation:
            while self.work.requests and self.work.requests[-1][0] > last:
                self.work.requests.pop()
        self.upcoming = deque(
            (kind, step, min(tag, last) if kind == Kind.SEGMENT else tag) for kind, step, tag in self.upcoming
        )
        self._finish_if_done()
        for server in self.servers:
            server.pulls.post(Kind.SEGMENT_END, step=last)
        for trainer in self.trainers.values():
            trainer.feed.post(Kind.SEGMENT_END, step=last)

    def _begin_evaluation(self, split: str, step: int) -> None:
        requests = self._mine(1, self.splits.schedules[split].num_steps)
        self.work = _Work(self._read(split, requests), deque(requests), evaluation=True, step=step)

    # ---- to servers

    def _may_issue(self) -> bool:
        work = self.work
        if work is None or not work.requests:
            return False
        step = work.requests[0][0]
        if work.evaluation:
            waiting = max((t.feed.pending for t in self.trainers.values()), default=0)
            oldest = min((k for k, _ in self.looked_up), default=step)
            return waiting <= MAX_QUEUED_FEEDS and step - oldest <= self.config.data.prefetch
        oldest = min((s for s, _ in self.in_flight), default=step)
        return step - oldest <= self.window and (self.limit is None or step <= self.limit)

    def _issue(self) -> bool:
        moved = False
        while self._may_issue():
            work = self.work
            assert work is not None
            item = work.reader.poll()
            if item is None:
                break
            (step, trainer), sample = item
            work.requests.popleft()
            train = self.splits.schedules["train"]
            num_global = sample.num_samples if work.evaluation else train.step(step).num_samples
            begin = time.perf_counter()
            batch = self.engine.prepare(sample, step=step, trainer=trainer, num_global=num_global)
            traced = 0 if work.evaluation else step
            begin = self.phases.add("dedup", begin, traced)
            if work.evaluation:
                self.looked_up[step, trainer] = batch
            else:
                self.engine.reuse(batch)
                self.in_flight[step, trainer] = batch
                self.issued = step
                self.first_pull.setdefault(work.first, time.time())
            for p, server in enumerate(self.servers):
                kind = Kind.LOOKUP if work.evaluation else Kind.PULL
                # A look-up names the step whose updates it must see, and finds its way back by the tag.
                server.pulls.post(
                    kind,
                    step=work.step if work.evaluation else step,
                    trainer=trainer,
                    tag=step,
                    arrays=self.engine.request(batch, p),
                )
            self.phases.add("pull", begin, traced)
            moved = True
            self._finish_if_done()
        return moved

    def _finish_if_done(self) -> None:
        """Once all batches of a stretch have been asked for, the next one begins, if it is known."""
        if self.work is not None and not self.work.requests:
            self.work.reader.close()
            self.work = None
        if self.work is None and self.upcoming:
            kind, step, tag = self.upcoming.popleft()
            if kind == Kind.SEGMENT:
                self._begin_segment(step, tag)
            else:
                self._begin_evaluation(SPLITS[tag], step)

    # ---- from servers

    def _poll_servers(self) -> bool:
        moved = False
        for p, server in enumerate(self.servers):
            while (record := server.rows.poll()) is not None:
                moved = True
                kind = Kind(record.kind)
                if self.ended:
                    record.release()  # rows that nobody waits for any more: the servers count them as dropped
                    continue
                if kind == Kind.STOP_SIGNAL:
                    self.trainers[0].feed.post(kind, step=0, tag=record.tag)
                elif kind in (Kind.CHECKPOINT_MARKED, Kind.CHECKPOINT_DONE):
                    self._saving[kind].discard(p)
                    if not self._saving[kind]:
                        self.trainers[0].feed.post(kind, step=record.step)
                else:
                    self._rows(p, record)
                record.release()
        return moved

    def _rows(self, p: int, record: Record) -> None:
        evaluation = record.kind == Kind.LOOKUP_ROWS
        key = (record.tag if evaluation else record.step, record.trainer)
        batch = self.looked_up[key] if evaluation else self.in_flight[key]
        begin = time.perf_counter()
        batch.staleness = max(batch.staleness, 0 if evaluation else record.tag)
        kind = Kind.FEED_EVALUATE if evaluation else Kind.FEED
        sender = self.trainers[record.trainer].feed
        if not self._pass_on(batch, record, sender, kind, key[0]):
            if not self.engine.fill(batch, p, record.arrays):
                self.phases.add("feed", begin, 0 if evaluation else key[0])
                return
            arrays = pack_row_batch(self.engine.assemble(batch))
            sender.post(kind, step=key[0], trainer=record.trainer, arrays=arrays)
        if evaluation:
            del self.looked_up[key]
        else:
            batch.rows, batch.held = [], None  # only the offsets are needed for the way back
        self.phases.add("feed", begin, 0 if evaluation else key[0])

    def _pass_on(self, batch: KeyBatch, record: Record, sender: RingSender, kind: Kind, step: int) -> bool:
        """Sends a batch with the rows copied straight from the only server's record, if there is room now.

        Else they must be copied aside: the record can't be kept until there is, since others lie behind it.
        """
        if len(self.servers) > 1:
            return False
        batch.rows = record.arrays
        arrays = pack_row_batch(self.engine.assemble(batch))
        sent = sender.try_post(kind, step=step, trainer=record.trainer, arrays=arrays)
        batch.rows = []
        batch.missing = set() if sent else batch.missing
        return sent

    def statistics(self) -> dict[str, Any]:
        """Counters for summary.json."""
        counted = {"first_pull": self.first_pull, **self.engine.statistics(), **self.phases.statistics()}
        return {**counted, "wait": {cause: self.phases.seconds[cause] for cause in ("idle", "read")}}
