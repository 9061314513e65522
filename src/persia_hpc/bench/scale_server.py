"""Measures what a batch costs one of many parameter servers beyond its rows and bytes, without MPI.

The server's own loop takes pulls and pushes of batches' parts from rings in plain memory, one for each
worker, and answers into rings. The other ends work between the clock's readings. In turns with it, one native
table that holds as many rows pulls, pushes and evicts as many: what is left is the price of having many
tables and workers, and of Python. CPU time, of one thread.
"""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np

from persia_hpc._native import Table, mix
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.tables import bucket_of
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.parameter_server.serve import ServerLoop
from persia_hpc.protocol.messages import Pull, Push, send
from persia_hpc.runtime.loop import RankContext
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout, native_config
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.ring import RingReceiver, RingSender

from .measure import Result, summarize
from .memory_ring import MemoryRing

VOCABULARY = 100_000  # ids of a table, over all servers
DIM = 16
FILLS = 8  # steps that make all rows
NUM_BATCHES = 16  # of each worker, made before the clock starts, used in turn
ROW_BYTES = 240  # of a row, with room to spare
BATCH_BYTES = 1 << 16  # of the rings' records beyond keys and rows


def measure_server(tables: int, servers: int, repeats: int, *, ids: int, workers: int = 1) -> Result:
    """Returns the microseconds of a batch of one worker for the first of `servers` servers.

    Those are a pull, a push, and its part of a step's end. A batch has `ids` random ids of each of `tables`
    features, with a table each.
    """
    server, table = _Server(tables, servers, ids, workers), _OneTable(tables, servers)
    generator = np.random.default_rng(1)
    batches = [[server.draw(ids, generator) for _ in range(workers)] for _ in range(NUM_BATCHES)]
    merged = [[table.draw(len(keys), generator) for keys, _ in step] for step in batches]
    ours, plain = [], []
    for _ in range(repeats + 1):  # the first fills caches and working memory
        ours.append(sum(server.step(step) for step in batches))
        begin = time.process_time()
        for step in merged:
            table.take(step)
        plain.append(time.process_time() - begin)
    record, one = (
        summarize([1e6 / (NUM_BATCHES * workers) * each for each in seconds[1:]]) for seconds in (ours, plain)
    )
    rows = sum(len(keys) for step in merged for keys in step) / (NUM_BATCHES * workers)
    return Result(
        {"part": "server", "tables": tables, "servers": servers, "workers": workers, "ids": ids},
        "us/batch",
        record,
        {"rows and bytes": one},
        notes={"beyond us": record.median - one.median, "rows": round(rows)},
    )


def _settings(rows: int) -> dict[str, Any]:
    table = {"dim": DIM, "optimizer": "rowwise_adagrad", "capacity": max(rows, 1 << 14) * ROW_BYTES}
    return {
        "mode": "hybrid",
        "data": {"train": ["none"], "batch_size": 1},
        "model": {"class": "tower"},
        "tables": {"default": table},
    }


def _schema(tables: int) -> DatasetSchema:
    return DatasetSchema(tuple(FeatureSchema(f"f{i}") for i in range(tables)))


class _Plane:
    """Plays the row plane of a server: its workers' rings."""

    def __init__(self, workers: int, num_bytes: int) -> None:
        names = ("pull", "push", "rows")
        self.rings = {(w, name): MemoryRing(num_bytes) for w in range(workers) for name in names}

    def receiver(self, worker: int, name: str) -> RingReceiver:
        return self.rings[worker, name].receiver

    def sender(self, worker: int, name: str) -> RingSender:
        return self.rings[worker, name].sender

    def progress(self) -> bool:
        return False


class _Server:
    """Holds the first of `servers` servers, whose tables have all their rows."""

    def __init__(self, tables: int, servers: int, ids: int, workers: int = 1) -> None:
        config = load_config(_settings(VOCABULARY))
        layout = make_layout(config, _schema(tables))
        self.engine = ParameterServer(config, layout, num_servers=servers, num_trainers=workers)
        self.engine.clock.begin_segment(1, 1 << 30)
        keys = np.sort(mix(np.arange(VOCABULARY, dtype=np.uint64)))
        self.keys = keys[bucket_of(keys, layout.tables[0].num_buckets) < self.engine.buckets[0].stop]
        most = max(ids, len(self.keys) // FILLS + 1) * tables
        self.workers = workers
        self.plane = _Plane(workers, (most * DIM * 4 + BATCH_BYTES) * 3 // 4096 * 4096)
        self.loop = ServerLoop(
            self.engine,
            config,
            cast(Plane, self.plane),
            range(workers),
            RankContext(*(cast(Any, None) for _ in range(4))),
        )
        self.gradients = np.full((most, DIM), 1e-3, np.float32)
        self.number = 0
        for part in np.array_split(self.keys, FILLS):
            batch = np.tile(part, tables), np.full(tables, len(part), np.uint32)
            self.step([batch] * workers)

    def draw(self, ids: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Returns the keys of a batch that are this server's, and their counts by table."""
        share = len(self.keys) / VOCABULARY
        parts = [
            np.unique(self.keys[generator.integers(len(self.keys), size=generator.binomial(ids, share))])
            for _ in self.engine.tables
        ]
        return np.concatenate(parts), np.array([len(part) for part in parts], np.uint32)

    def step(self, batches: list[tuple[Array, Array]]) -> float:
        """Brings each worker's pull, then the gradients of its rows; returns the server's CPU seconds."""
        self.number += 1
        for worker, (keys, counts) in enumerate(batches):
            send(self.plane.sender(worker, "pull"), Pull(self.number, worker, keys, counts))
        seconds = self._serve()
        for worker, (keys, _) in enumerate(batches):
            answer = self.plane.receiver(worker, "rows").poll()
            assert answer is not None, "no rows came"
            answer.release()
            gradients = [self.gradients[: len(keys)]]
            send(self.plane.sender(worker, "push"), Push(self.number, worker, gradients))
        return seconds + self._serve()

    def _serve(self) -> float:
        begin = time.process_time()
        while self.loop.poll():
            pass
        return time.process_time() - begin


class _OneTable:
    """Holds one native table with as many rows as all of a server's tables have."""

    def __init__(self, tables: int, servers: int) -> None:
        rows = tables * VOCABULARY // servers
        config = load_config(_settings(rows))
        layout = make_layout(config, _schema(1)).tables[0]
        self.table = Table(native_config(config, layout, 0, layout.num_buckets))
        self.keys = np.sort(mix(np.arange(rows, dtype=np.uint64)))
        self.step = 0
        self.gradients = np.full((rows // FILLS + 1, DIM), 1e-3, np.float32)
        for part in np.array_split(self.keys, FILLS):
            self.take([part])

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        return np.sort(generator.choice(self.keys, rows, replace=False))

    def take(self, batches: list[Array]) -> None:
        """Pulls and pushes the rows of a step's batches, then evicts."""
        self.step += 1
        pulled = []
        for keys in batches:
            out, slots = np.empty((len(keys), DIM), np.float32), np.empty(len(keys), np.uint32)
            pulled.append((keys, slots, self.table.pull(keys, self.step, out, slots)))
        for keys, slots, epoch in pulled:
            self.table.push(keys, slots, self.gradients[: len(keys)], self.step, epoch)
        self.table.evict(self.step)
