"""Measures what a batch costs an embedding worker beyond dedup and copying its bytes, without MPI.

The worker's own loop asks the servers for rows, takes their answers, feeds a trainer and pushes its
gradients, by rings in plain memory. The other ends answer between the clock's readings. In turns with it, as
many bytes are copied in one piece each: what is left is the price of having many tables and servers, and of
Python. CPU time, of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from persia_hpc._native import keep_freed_memory
from persia_hpc.arrays import Array
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, KeyBatch
from persia_hpc.embedding_worker.rings import WorkerPlanes
from persia_hpc.embedding_worker.serve import WorkerLoop
from persia_hpc.protocol.messages import Gradients, Pull, Rows, send
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.transport.ring import RingReceiver, RingSender

from .dedup import zipf_ids
from .measure import Result, summarize
from .memory_ring import MemoryRing

VOCABULARY = 1_000_000  # ids of a table
DIM = 16
NUM_BATCHES = 8  # made before the clock starts, used in turn
ZIPF = 1.2
PHASES = ("dedup", "request", "fill", "push")


def measure_worker(tables: int, servers: int, repeats: int, *, ids: int) -> Result:
    """Returns the microseconds of a batch's requests, rows and gradients, with one trainer.

    A batch has `ids` ids of each of `tables` features, with a table each, id k with a probability
    proportional to k^-1.2.
    """
    keep_freed_memory()  # as an embedding worker does
    worker = _Worker(tables, servers, ids)
    copies = [np.ones(size, np.uint8) for size in worker.copied_bytes()]
    targets = [np.zeros_like(each) for each in copies]
    seconds: dict[str, list[float]] = {name: [] for name in (*PHASES, "copies")}
    for turn in range(repeats + 1):
        found = dict.fromkeys(seconds, 0.0)
        for number in range(NUM_BATCHES):
            for name, taken in worker.batch(number):
                found[name] += taken
            begin = time.process_time()
            for source, target in zip(copies, targets, strict=True):
                target[:] = source
            found["copies"] += time.process_time() - begin
        for name, total in found.items():
            if turn:  # the first fills caches and working memory
                seconds[name].append(total * 1e6 / NUM_BATCHES)
    times = {name: summarize(values) for name, values in seconds.items()}
    sums = [sum(each) for each in zip(*(seconds[name] for name in PHASES[1:]), strict=True)]
    ours = summarize(sums)
    notes: dict[str, Any] = {"beyond us": ours.median - times["copies"].median}
    notes |= {f"{name} us": times[name].median for name in PHASES}
    case = {"part": "worker", "tables": tables, "servers": servers, "ids": ids}
    return Result(case, "us/batch", ours, {"bytes": times["copies"]}, notes=notes)


class _Plane:
    """Plays a worker's plane: rings by their names and peers."""

    pending = 0

    def __init__(self, peers: int, out: dict[str, int], back: dict[str, int]) -> None:
        self.out = {(i, name): MemoryRing(size) for name, size in out.items() for i in range(peers)}
        self.back = {(i, name): MemoryRing(size) for name, size in back.items() for i in range(peers)}

    def sender(self, peer: int, name: str) -> RingSender:
        return self.out[peer, name].sender

    def receiver(self, peer: int, name: str) -> RingReceiver:
        return self.back[peer, name].receiver


class _Worker:
    """Holds a worker, the other ends of its rings, and samples."""

    def __init__(self, tables: int, servers: int, ids: int) -> None:
        settings = {
            "mode": "sync",
            "data": {"train": ["none"], "batch_size": ids},
            "model": {"class": "tower"},
            "tables": {"default": {"dim": DIM, "optimizer": "sgd", "capacity": VOCABULARY * 100}},
        }
        config = load_config(settings)
        names = [f"f{i}" for i in range(tables)]
        schema = DatasetSchema(tuple(FeatureSchema(name) for name in names), ())
        layout = make_layout(config, schema)
        generator = np.random.default_rng(1)
        drawn = zipf_ids(NUM_BATCHES * tables * ids, VOCABULARY, ZIPF, generator)
        self.samples = [
            SampleBatch(
                {name: IdColumn(column) for name, column in zip(names, columns, strict=True)},
                np.empty((ids, 0), np.float32),
                np.zeros((ids, 1), np.float32),
            )
            for columns in drawn.reshape(NUM_BATCHES, tables, ids)
        ]
        self.engine = EmbeddingWorker(layout, num_servers=servers)
        self.step = 0
        first = self._prepare(0)
        size = ring_sizes(config, layout, schema, num_servers=servers, num_trainers=1)
        self.row_plane = _Plane(servers, {"pull": size.pull, "push": size.push}, {"rows": size.rows})
        self.feed_plane = _Plane(1, {"feed": size.feed}, {"gradients": size.gradients})
        planes = WorkerPlanes(
            cast(Any, self.row_plane), range(servers), cast(Any, self.feed_plane), range(1), [(0,)]
        )
        context = SimpleNamespace(waiter=SimpleNamespace(wake=None), watchdog=None, stop=None)
        self.loop = WorkerLoop(self.engine, config, cast(Any, None), planes, cast(Any, context))
        unique = len(first.dedup.keys)
        self.gradients = np.full((tables * ids, DIM), 1e-3, np.float32)
        self.rows = np.ones((tables * ids, DIM), np.float32)
        self._copied = [unique * 8, unique * DIM * 4, unique * DIM * 4]
        if servers > 1:
            self._copied.append(unique * DIM * 4)  # aside, before the trainer's record is made
        indices = first.dedup.indices
        self._copied += [indices.nbytes, 4 * len(indices), 4 * unique]

    def copied_bytes(self) -> list[int]:
        """Returns the bytes of a batch's keys, rows, gradients and indices, as often as they are copied."""
        return self._copied

    def _prepare(self, number: int) -> KeyBatch:
        sample = self.samples[number]
        self.step += 1
        return self.engine.prepare(sample, step=self.step, trainer=0, num_global=sample.num_samples)

    def batch(self, number: int) -> Iterator[tuple[str, float]]:
        """Takes a batch through the worker; yields the seconds of each phase."""
        begin = time.process_time()
        batch = self._prepare(number)
        yield "dedup", time.process_time() - begin
        yield "request", _timed(lambda: self.loop._pull(batch))
        for peer in range(self.engine.num_servers):
            self._answer(peer)
        yield "fill", _timed(self.loop._poll_servers)
        fed = self.feed_plane.out[0, "feed"].receiver.poll()
        assert fed is not None, "not all rows came"
        fed.release()
        gradients = self.gradients[: len(batch.dedup.keys)]
        send(self.feed_plane.back[0, "gradients"].sender, Gradients(batch.step, 0, [gradients]))
        yield "push", _timed(self.loop._poll_trainers)
        for peer in range(self.engine.num_servers):
            pushed = self.row_plane.out[peer, "push"].receiver.poll()
            assert pushed is not None, "no push came"
            pushed.release()

    def _answer(self, peer: int) -> None:
        record = self.row_plane.out[peer, "pull"].receiver.poll()
        assert record is not None, "no pull came"
        pull = Pull.unpack(record)
        count = len(cast(Array, pull.keys))
        record.release()
        send(self.row_plane.back[peer, "rows"].sender, Rows(pull.step, 0, 0, [self.rows[:count]]))


def _timed(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin
