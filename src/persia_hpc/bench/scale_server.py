"""Measures what a record costs one of many parameter servers beyond its rows and bytes, without MPI.

The server's own loop takes pulls and pushes of a batch's part from memory, as if a ring had brought them, and
answers into memory. In turns with it, one native table that holds as many rows pulls, pushes and evicts as
many: what is left is the price of having many tables, and of Python. CPU time, of one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from persia_hpc._native import Table, mix
from persia_hpc.arrays import Array
from persia_hpc.checkpoint.tables import bucket_of
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.parameter_server.serve import ServerLoop
from persia_hpc.protocol.messages import Kind
from persia_hpc.runtime.loop import RankContext
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout, native_config
from persia_hpc.transport.plane import Plane
from persia_hpc.transport.records import Record, Spec

from .measure import Result, in_turns

VOCABULARY = 100_000  # ids of a table, over all servers
DIM = 16
FILLS = 8  # records that make all rows
NUM_BATCHES = 16  # made before the clock starts, used in turn
ROW_BYTES = 240  # of a row, with room to spare


def measure_server(tables: int, servers: int, repeats: int, *, ids: int) -> Result:
    """Returns the microseconds of a pull and a push of the first of `servers` servers, and its steps' ends.

    A batch has `ids` random ids of each of `tables` features, with a table each.
    """
    server, table = _Server(tables, servers, ids), _OneTable(tables, servers)
    generator = np.random.default_rng(1)
    batches = [server.draw(ids, generator) for _ in range(NUM_BATCHES)]
    merged = [table.draw(len(keys), generator) for keys, _ in batches]

    def records() -> None:
        for keys, counts in batches:
            server.record(keys, counts)

    def one_table() -> None:
        for keys in merged:
            table.record(keys)

    times = in_turns({"record": records, "table": one_table}, repeats, time.process_time)
    record, one = (times[name].scaled(1e6 / NUM_BATCHES) for name in ("record", "table"))
    rows = sum(len(keys) for keys in merged) / NUM_BATCHES
    return Result(
        {"part": "server", "tables": tables, "servers": servers, "ids": ids},
        "us/record",
        record,
        {"rows and bytes": one},
        notes={"beyond us": record.median - one.median, "rows": round(rows)},
    )


def _settings(rows: int) -> dict[str, Any]:
    table = {"dim": DIM, "optimizer": "rowwise_adagrad", "capacity": max(rows, 1 << 14) * ROW_BYTES}
    return {
        "mode": "sync",
        "data": {"train": ["none"], "batch_size": 1},
        "model": {"class": "tower"},
        "tables": {"default": table},
    }


def _schema(tables: int) -> DatasetSchema:
    return DatasetSchema(tuple(FeatureSchema(f"f{i}") for i in range(tables)))


class _Ring:
    """Plays both ends of a ring that always has room, and gives no memory back."""

    closed = False

    def __init__(self) -> None:
        self.records: deque[Record] = deque()

    def poll(self) -> Record | None:
        return self.records.popleft() if self.records else None

    def try_reserve(self, *_: object, specs: Sequence[Spec], **__: object) -> list[Array]:
        return [np.empty(shape, dtype) for dtype, shape in specs]

    def commit(self) -> None:
        pass


class _Plane:
    """Plays the row plane of a server with one worker."""

    def __init__(self) -> None:
        self.rings = {name: _Ring() for name in ("pull", "push", "rows")}

    def receiver(self, _: int, name: str) -> _Ring:
        return self.rings[name]

    sender = receiver

    def progress(self) -> bool:
        return False


class _Server:
    """Holds the first of `servers` servers, whose tables have all their rows."""

    def __init__(self, tables: int, servers: int, ids: int) -> None:
        config = load_config(_settings(VOCABULARY))
        layout = make_layout(config, _schema(tables))
        self.engine = ParameterServer(config, layout, num_servers=servers)
        self.engine.clock.begin_segment(1, 1 << 30)
        self.plane = _Plane()
        self.loop = ServerLoop(
            self.engine,
            config,
            cast(Plane, self.plane),
            [0],
            RankContext(*(cast(Any, None) for _ in range(3))),
        )
        keys = np.sort(mix(np.arange(VOCABULARY, dtype=np.uint64)))
        self.keys = keys[bucket_of(keys, layout.tables[0].num_buckets) < self.engine.buckets[0].stop]
        self.gradients = np.full((max(ids, len(self.keys) // FILLS + 1) * tables, DIM), 1e-3, np.float32)
        self.step = 0
        for part in np.array_split(self.keys, FILLS):
            self.record(np.tile(part, tables), np.full(tables, len(part), np.uint32))

    def draw(self, ids: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Returns the keys of a batch that are this server's, and their counts by table."""
        share = len(self.keys) / VOCABULARY
        parts = [
            np.unique(self.keys[generator.integers(len(self.keys), size=generator.binomial(ids, share))])
            for _ in self.engine.tables
        ]
        return np.concatenate(parts), np.array([len(part) for part in parts], np.uint32)

    def record(self, keys: Array, counts: Array) -> None:
        """Brings a pull, and the gradients of its rows."""
        self.step += 1
        rings = self.plane.rings
        rings["pull"].records.append(Record(Kind.PULL, self.step, 0, 0, [keys, counts]))
        self.loop.poll()
        rings["push"].records.append(Record(Kind.PUSH, self.step, 0, 0, [self.gradients[: len(keys)]]))
        self.loop.poll()


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
            self.record(part)

    def draw(self, rows: int, generator: np.random.Generator) -> Array:
        return np.sort(generator.choice(self.keys, rows, replace=False))

    def record(self, keys: Array) -> None:
        self.step += 1
        out, slots = np.empty((len(keys), DIM), np.float32), np.empty(len(keys), np.uint32)
        epoch = self.table.pull(keys, self.step, out, slots)
        self.table.push(keys, slots, self.gradients[: len(keys)], self.step, epoch)
        self.table.evict(self.step)
