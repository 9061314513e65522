"""Plays all roles in one process, by plain calls: bit-identical to `sync` with one rank a role."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch

from persia_hpc._native import PendingPull
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.names import shard_name
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, KeyBatch
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.runtime.phases import LOCAL_STREAM, TRAINER, Phases
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.samples.source import Source
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.schedule import Schedule
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.serving.writer import PartWriter

from .facts import Facts

Rows = Callable[[Array, Array], list[Array]]
WAIT_SECONDS = 0.02  # between two looks whether a wait is over
STEPS_AHEAD = 8  # that are prepared while others are trained: reading comes in bursts, a window at a time


def local_server(facts: Facts) -> ParameterServer:
    """Returns a job's only server, with empty tables.

    Calls follow one another, so nothing is ever stale: in any mode this is `sync` with one trainer.
    """
    sync = dataclasses.replace(facts.config, mode="sync", staleness_bound=0, exact=False, apply="step")
    num_steps = facts.schedules["train"].num_steps if "train" in facts.schedules else 1
    return ParameterServer(sync, facts.layout, num_steps=num_steps, threads=torch.get_num_threads())


def rows_of(config: Config, server: ParameterServer) -> Rows:
    """Returns what gives the rows of keys for an evaluation, from a server in this process.

    Shapes: keys uint64 [U] and counts uint32 [T], of each table, become for each dim group [U_g, D_g] in the
    wire format of rows.
    """

    def rows(keys: Array, counts: Array) -> list[Array]:
        out = empty_rows(config, server, counts)
        server.lookup(keys, counts, out)
        return out

    return rows


def empty_rows(config: Config, server: ParameterServer, counts: Array) -> list[Array]:
    """Returns room for so many rows of each table, in the wire format of rows."""
    wire = WIRES[config.wire.rows]
    return [np.empty(wire.shape(*shape), wire.dtype) for shape in server.row_shapes(counts)]


def look_up(worker: EmbeddingWorker, batch: KeyBatch, rows: Rows) -> RowBatch:
    """Returns a prepared batch of an evaluation with its rows, all from one server."""
    request = worker.request(batch)
    return worker.assemble(batch, rows(request.keys.part(0), request.counts.part(0)))


class LocalStream:
    """Streams batches to a session whose worker and server live in the same process. See `BatchStream`."""

    memory = ()
    alone = True

    def __init__(
        self,
        facts: Facts,
        sources: Mapping[str, Source],
        server: ParameterServer,
        stop: StopSignals | None = None,
        *,
        ahead: bool = False,
    ):
        """Starts without a batch.

        ahead: while a step is trained, a thread reads the samples of the next ones and finds their keys. Not
        with `data.transform`, which may draw from the same generators as the model. Another thread applies a
        step's row gradients, while the dense optimizer and what follows it run here.
        """
        config = facts.config
        self._server = server
        self.worker = EmbeddingWorker.of(config, facts.layout, sources=sources)
        self.splits = SplitReaders(config, sources, facts.schedules)
        self.wait_seconds = 0.0
        self.phases = Phases((*LOCAL_STREAM, *TRAINER), config.train.trace, trainer=0)
        self.first_pull: dict[int, float] = {}
        self._config = config
        self._rows = rows_of(config, server)
        self._stop = stop
        self._parts = PartWriter(server, config.export.rows)
        self._last = 0
        self._pulled = 0
        self._applying: Future[None] | None = None  # the last push, while nobody has waited for it
        self._evaluation: tuple[str, int] = ("", 0)
        threaded = ahead and not config.data.transform
        self._thread = ThreadPoolExecutor(1, "persia-prepare") if threaded else None
        self._ahead: deque[Future[KeyBatch]] = deque()  # of the steps after the last that was pulled
        self._applier = ThreadPoolExecutor(1, "persia-apply") if ahead else None

    @property
    def server(self) -> ParameterServer:
        """Returns the server, when it has applied what was pushed: nothing else may use it before."""
        self._settle()
        return self._server

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        while not done():
            assert what is None, f"there is no other rank to wait for: {what}"
            time.sleep(WAIT_SECONDS)

    def early(self, step: int) -> None:
        """Returns None: a batch is final when it is made."""

    def peek(self, step: int) -> None:
        """Returns None: a batch is made when it is asked for."""

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        self._drop_ahead()
        self.splits.begin_portion(schedule, files)

    def begin_segment(self, first: int, last: int, rate_factor: float) -> None:
        self._drop_ahead()
        self._last = last
        if first > 1:
            self.first_pull[first] = time.time()
        self.server.begin_segment(first, last, rate_factor)

    def next_batch(self, step: int) -> RowBatch | None:
        if step > self._last:
            return None
        batch = self._take(step)
        server = self.server
        self._pulled = step
        begin = time.perf_counter()
        request = self.worker.request(batch)
        keys, counts = request.keys.part(0), request.counts.part(0)
        self.first_pull.setdefault(server.clock.first, time.time())
        server.submit_pull(PendingPull(step, 0, keys, counts))
        (pull,) = server.ready_pulls()
        rows = empty_rows(self._config, server, counts)
        batch.staleness = server.answer(pull, rows)
        row_batch = self.worker.assemble(batch, rows)
        if self._thread is not None:  # now: the pull has had all cores, what comes next has one
            for later in range(step + 1 + len(self._ahead), min(step + STEPS_AHEAD, self._last) + 1):
                self._ahead.append(self._thread.submit(self._prepare, "train", later))
        self.phases.add("pull", begin, step)
        return row_batch

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        begin = time.perf_counter()
        if self._applier is None:
            self._apply(batch.step, gradients)
        else:
            self._applying = self._applier.submit(self._apply, batch.step, gradients)
        self.phases.add("push", begin, batch.step)

    def end_segment(self) -> None:
        self._settle()

    def request_stop(self) -> None:
        # The step that is being trained is the last, or the one before if its gradients have been pushed.
        clock = self.server.clock
        self._last = max(self._pulled, clock.applied)
        clock.shorten_segment(self._last)

    def begin_evaluation(self, split: str, step: int) -> None:
        self._settle()  # a loop of the user's own may evaluate within a segment
        self._drop_ahead()
        self._evaluation = (split, step)

    def next_evaluation(self, number: int) -> RowBatch:
        return look_up(self.worker, self._prepare(self._evaluation[0], number), self._rows)

    def stop_signal(self) -> int | None:
        if self._server.disk_problem is not None:  # of a push under way the next step hears
            return signal.SIGTERM
        return self._stop.number if self._stop is not None else None

    def begin_checkpoint(self, directory: str, step: int, base_step: int) -> None:
        ShardWriter(self.server, Path(directory) / shard_name(0), base_step).write()

    def checkpoint_written(self) -> bool:
        return True

    def wait_for_checkpoint(self, give_up: Callable[[], bool]) -> None:
        pass

    def restore(self, directory: str, step: int) -> None:
        self._drop_ahead()
        self.server.empty()
        load_rows(Path(directory), self.server)

    def begin_export(self, request: ExportRequest) -> None:
        self._settle()
        self._parts.begin(request)

    def exported(self) -> list[ExportReport]:
        return self._parts.finished()

    def close(self) -> None:
        """Ends the threads; may be called again."""
        self._parts.close()
        self._drop_ahead()
        for thread in (self._thread, self._applier):
            if thread is not None:
                thread.shutdown()

    def _settle(self) -> None:
        """Waits until what was pushed last is applied; raises what went wrong there."""
        applying, self._applying = self._applying, None
        if applying is not None:
            begin = time.perf_counter()
            applying.result()
            self.phases.add("push", begin, self._pulled)

    def _apply(self, step: int, gradients: list[Array]) -> None:
        self._server.submit_push(step, 0, gradients)
        self._server.apply_ready()

    def _take(self, step: int) -> KeyBatch:
        """Returns a training step's batch, once the thread has prepared it if it was told to."""
        if not self._ahead:
            return self._prepare("train", step, self.phases)
        begin = time.perf_counter()
        assert step == self._pulled + 1
        batch = self._ahead.popleft().result()
        self.wait_seconds += time.perf_counter() - begin
        self.phases.add("read", begin, step)
        return batch

    def _drop_ahead(self) -> None:
        """Waits until the thread is idle; what it has prepared may be of other files or not asked for."""
        for prepared in self._ahead:
            prepared.cancel()
        wait(self._ahead)  # these steps are not trained, so their errors are nobody's
        self._ahead.clear()

    def _prepare(self, split: str, number: int, phases: Phases | None = None) -> KeyBatch:
        """Reads samples and finds their keys; adds the time to `phases`, of the thread that trains."""
        begin = time.perf_counter()
        step = self.splits.schedules[split].step(number)
        sample = self.splits.readers[split].read(step.epoch, step.begin, step.end)
        read = time.perf_counter()
        batch = self.worker.prepare(
            sample, step=number, trainer=0, num_global=step.num_samples, evaluation=split != "train"
        )
        if phases is not None:
            self.wait_seconds += read - begin
            phases.add("read", begin, number, read)
            phases.add("dedup", read, number)
        return batch
