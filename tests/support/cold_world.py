"""A run's servers with tables on disk, without ranks, and what each of its checkpoints must hold."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from persia_hpc._native import mix
from persia_hpc.checkpoint import files, shards
from persia_hpc.checkpoint.merged import CheckpointReader
from persia_hpc.checkpoint.names import DENSE, is_cold, shard_name, step_name
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.checkpoint.tables import bucket_of
from persia_hpc.config import load_config
from persia_hpc.errors import PersiaError
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

IDS, BUCKETS, DIM = 3000, 4, 16
SCHEMA = DatasetSchema((FeatureSchema("a"), FeatureSchema("b")))
APPENDS = 11  # calls of a full checkpoint, for each server: two tables' columns, and their records
Rows = dict[str, np.ndarray]


class Appending:
    """Appends as a writer does, but one call fails."""

    def __init__(self, full_at: int) -> None:
        self.full_at, self.calls, self._append = full_at, 0, shards._append

    def __call__(self, *arguments: Any) -> None:
        self.calls += 1
        if self.calls - 1 == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._append(*arguments)


class World:
    """A run's servers, whose steps use ids at random, and what each of its checkpoints must hold."""

    def __init__(self, folder: Path, num_servers: int, seed: int = 0, *, disk: bool = True) -> None:
        (folder / "tier").mkdir(parents=True, exist_ok=True)
        self.run = folder / "run"
        common: dict[str, Any] = {"dim": DIM, "buckets": BUCKETS, "capacity": "64 KiB" if disk else "8 MiB"}
        if disk:
            common["disk"] = {"path": str(folder / "tier"), "capacity": "8 MiB"}
        tables = {
            "a": {**common, "optimizer": {"name": "adam"}},
            "b": {**common, "optimizer": {"name": "sgd"}, "eviction": "lfu"},  # always whole
        }
        given = {"data": {"train": ["none"], "batch_size": 32}, "model": {"class": "dlrm"}, "tables": tables}
        given["features"] = {name: {"table": name} for name in tables}
        self.config = load_config(given)
        self.random = np.random.default_rng(seed)
        self.step = 0
        self.base: int | None = None
        self.expected: dict[int, dict[str, Rows]] = {}
        self.start(num_servers)

    def start(self, num_servers: int) -> None:
        self.servers = [self.server(p, num_servers) for p in range(num_servers)]

    def server(self, rank: int, num_servers: int) -> ParameterServer:
        layout = make_layout(self.config, SCHEMA)
        return ParameterServer(self.config, layout, server_rank=rank, num_servers=num_servers)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            start, spread = self.random.integers(IDS), self.random.integers(60, 600)
            ids = np.unique((start + self.random.integers(0, spread, 250)) % IDS).astype(np.uint64)
            keys = np.sort(mix(ids))
            grads = self.random.normal(size=(len(keys), DIM)).astype(np.float32)
            buckets = bucket_of(keys, BUCKETS)
            for server in self.servers:
                for table in server.tables:
                    assert table is not None
                    mine = (buckets >= table.first_bucket) & (buckets < table.end_bucket)
                    out, slots = np.empty((mine.sum(), DIM), np.float32), np.empty(mine.sum(), np.uint32)
                    epoch = table.pull(keys[mine], self.step, out, slots)
                    table.push(keys[mine], slots, grads[mine], self.step, epoch)
                    table.evict(self.step)

    def rows(self, servers: Sequence[ParameterServer] | None = None) -> dict[str, Rows]:
        found: dict[str, list[Rows]] = {"a": [], "b": []}
        for server in servers or self.servers:
            for name, table in zip(found, server.tables, strict=True):
                assert table is not None
                found[name] += [table.export_bucket(b) for b in range(table.first_bucket, table.end_bucket)]
        return {
            name: {k: np.concatenate([piece[k] for piece in pieces]) for k in pieces[0]}
            for name, pieces in found.items()
        }

    def save(
        self, *, incremental: bool = False, crash: bool = False, meanwhile: int = 0, full_at: int = -1
    ) -> Path:
        """Writes a checkpoint. full_at: which of the calls that append finds the disk full."""
        base = self.base if incremental else None
        directory = files.begin_checkpoint(self.run, step := self.step)
        expected = self.rows()
        writers = [
            ShardWriter(server, directory / shard_name(p), base or 0) for p, server in enumerate(self.servers)
        ]
        self.train(meanwhile)
        with mock.patch.object(shards, "_append", Appending(full_at)) as appending:
            for writer in writers:
                fails = appending.calls <= full_at < appending.calls + APPENDS
                with pytest.raises(PersiaError, match="No space left") if fails else nullcontext():
                    writer.write()
                crash |= fails
        assert crash or full_at < 0
        if crash:
            self.base = None
            return directory
        (directory / DENSE).write_bytes(b"")
        files.finish_part(directory / DENSE)
        facts: dict[str, Any] = {"config": self.config, "schema": SCHEMA, "versions": {}}
        name = None if base is None else step_name(base)
        path = files.finish_checkpoint(directory, step=step, base=name, num_samples={"train": 1}, **facts)
        self.expected[step] = expected
        if base is None:
            self.base = step
        return path

    def check(self, step: int, num_servers: int) -> None:
        """A checkpoint that is there holds the rows of its moment for any servers and readers."""
        directory, expected = self.run / step_name(step), self.expected[step]
        servers = [self.server(p, num_servers) for p in range(num_servers)]
        for server in servers:
            load_rows(directory, server)
        got = self.rows(servers)
        with CheckpointReader(directory) as reader:
            for name, rows in expected.items():
                assert_rows(got[name], rows)
                assert_rows(reader.tables[name].read(0, BUCKETS), rows)


def assert_rows(got: Rows, expected: Rows) -> None:
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].tobytes() == values.tobytes(), name


def cold_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if is_cold(path.name))


def no_link(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")
