"""`wire.reuse_steps`: rows that a trainer holds don't travel again, and keep to the staleness bound.

Each row counts its updates (init zero, SGD with a rate of 1, gradients of the feature's weight), so a row's
value says whose it is and after which steps it was read.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, KeyBatch
from persia_hpc.errors import UserError
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.protocol.row_batch import RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.pooling.embed import Pooling

FEATURES = {"a": 1, "b": 16, "c": 2}  # what an update adds; c has another dim and so another group
SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in FEATURES))
TABLE = {
    "optimizer": {"name": "sgd", "lr": 1.0},
    "init": {"name": "uniform", "low": 0.0, "high": 0.0},
    "buckets": 8,
}


def config_of(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "hybrid",
        "data": {"train": ["none"], "batch_size": 8},
        "model": {"class": "tower"},
        "tables": {"default": {"dim": 2, **TABLE}, "c": {"dim": 3, **TABLE}},
        "features": {"c": {"table": "c"}},
        **changes,
    }


class Pipeline:
    """Servers, workers that take turns, and one trainer, by plain calls; a row's updates are counted here."""

    def __init__(self, bound: int, reuse: int, servers: int, workers: int, kernel: str, wire: str):
        settings = {"staleness_bound": bound, "wire": {"reuse_steps": reuse, "rows": wire}}
        settings["ranks"] = {"embedding_workers": workers}
        self.config = load_config(config_of(**settings))
        self.layout = make_layout(self.config, SCHEMA)
        self.servers = [
            ParameterServer(self.config, self.layout, server_rank=p, num_servers=servers)
            for p in range(servers)
        ]
        self.workers = [EmbeddingWorker.of(self.config, self.layout, servers, w) for w in range(workers)]
        self.pooling = Pooling(make_inputs(self.layout, SCHEMA), kernel=kernel)
        self.in_flight: list[KeyBatch] = []
        self.bound, self.step, self.wire = bound, 0, WIRES[wire]
        self.uses: list[dict[tuple[str, int], bool]] = [{}]  # of each step
        self.travelled = self.pulled = 0

    def begin_segment(self, last: int) -> None:
        for server in self.servers:
            server.clock.begin_segment(self.step + 1, last)
        for worker in self.workers:
            worker.forget_rows()

    def pull(self, ids: list[list[int]]) -> bool:
        """The next step's batch, to the trainer; False if it would be too stale."""
        if not all(s.clock.may_answer(self.step + 1, 0) for s in self.servers):
            return False
        self.step += 1
        worker = self.workers[self.step % len(self.workers)]
        columns = {n: IdColumn(np.array(v, np.uint64)) for n, v in zip(FEATURES, ids, strict=True)}
        count = len(ids[0])
        sample = SampleBatch(columns, np.empty((count, 0), np.float32), np.zeros((count, 1), np.float32))
        batch = worker.prepare(sample, step=self.step, trainer=0, num_global=count)
        worker.reuse(batch)
        for p, server in enumerate(self.servers):
            keys, counts, wanted = (
                None if parts is None else parts.part(p) for parts in worker.request(batch)
            )
            server.submit_pull(PendingPull(self.step, 0, keys, counts, 0, wanted))
            (pull,) = server.ready_pulls()
            out = [
                np.empty(self.wire.shape(*shape), self.wire.dtype)
                for shape in server.row_shapes(pull.counts, pull.wanted)
            ]
            batch.staleness = max(batch.staleness, server.answer(pull, out))
            worker.add_rows(batch, p, out)
            self.travelled += sum(len(rows) for rows in out)
        self.pulled += len(batch.dedup.keys)
        self.uses.append({(n, i): True for n, v in zip(FEATURES, ids, strict=True) for i in v})
        self.check(worker.assemble(batch), ids)
        self.in_flight.append(batch)
        return True

    def check(self, row_batch: RowBatch, ids: list[list[int]]) -> None:
        arrays = [np.concatenate(a) if isinstance(a, list) else a for a in pack_row_batch(row_batch)]
        row_batch = unpack_row_batch(self.step, 0, arrays, ())
        batch, _ = self.pooling.embed(row_batch, training=True)
        assert row_batch.staleness <= self.bound
        for name, values in zip(FEATURES, ids, strict=True):
            rows = batch.pooled[name].detach()
            assert torch.equal(rows, rows[:, :1].expand_as(rows))
            for total, i in zip(rows[:, 0].tolist(), values, strict=True):
                count, rest = divmod(total, FEATURES[name])
                assert rest == 0
                before = sum((name, i) in step for step in self.uses[: self.step])
                missed = sum(
                    (name, i) in step for step in self.uses[self.step - row_batch.staleness : self.step]
                )
                assert before - missed <= count <= before

    def push(self) -> None:
        batch = self.in_flight.pop(0)
        worker = self.workers[batch.step % len(self.workers)]
        groups = batch.dedup.group_offsets.astype(int)
        added = np.repeat(list(FEATURES.values()), np.diff(batch.dedup.table_offsets.astype(int)))
        gradients = [
            np.repeat(-added[begin:end, None].astype(np.float32), dim, axis=1)
            for begin, end, dim in zip(groups, groups[1:], self.layout.dim_groups, strict=False)
        ]
        for p, server in enumerate(self.servers):
            parts = worker.split_gradients(batch, gradients)
            server.submit_push(batch.step, 0, [each.part(p) for each in parts])
            server.apply_ready()


ID = st.sampled_from([0, 1, 2, 3, 500, 2**40])
BATCH = st.integers(1, 4).flatmap(
    lambda n: st.tuples(*(st.lists(ID, min_size=n, max_size=n) for _ in FEATURES))
)


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(BATCH, min_size=1, max_size=14),
    bound=st.integers(2, 6),
    reuse=st.integers(2, 6),
    servers=st.integers(1, 3),
    workers=st.integers(1, 2),
    kernel=st.sampled_from(["native", "torch", "cuda"]),
    wire=st.sampled_from(sorted(WIRES)),
    order=st.lists(st.booleans()),
    pause=st.integers(0, 13),
)
def test_rows_miss_no_more_than_the_bound_and_every_update_arrives(
    batches: list, bound: int, reuse: int, servers: int, workers: int, kernel: str, wire: str,
    order: list[bool], pause: int,
) -> None:  # fmt: skip
    job = Pipeline(bound, min(reuse, bound), servers, workers, kernel, wire)
    pushes = iter([*order, *[False] * 100])
    for first, last in pairwise(sorted({0, min(pause, len(batches)), len(batches)})):
        job.begin_segment(last)
        for ids in batches[first:last]:
            while (job.in_flight and next(pushes)) or not job.pull(list(ids)):
                job.push()
        while job.in_flight:
            job.push()
    ledgers = [server.ledger for server in job.servers]
    assert sum(ledger.pulled_rows for ledger in ledgers) == job.pulled
    assert sum(ledger.applied_rows for ledger in ledgers) == job.pulled
    assert job.travelled == job.pulled - sum(ledger.reused_rows for ledger in ledgers)


def test_the_same_ids_travel_every_few_steps() -> None:
    job = Pipeline(bound=4, reuse=3, servers=1, workers=1, kernel="native", wire="fp32")
    job.begin_segment(40)
    ids = [list(range(50)), list(range(50, 100)), list(range(100, 150))]
    for _ in range(40):
        while not job.pull(ids):
            job.push()
    assert job.pulled == 40 * 150
    assert job.travelled == pytest.approx(job.pulled / 4, rel=0.3)
    assert job.workers[0].max_staleness == 4


def test_reuse_needs_room_in_the_bound() -> None:
    with pytest.raises(UserError, match=r"wire\.reuse_steps = 5: expected at most staleness_bound = 4"):
        load_config(config_of(wire={"reuse_steps": 5}))
    with pytest.raises(UserError, match=r"wire\.reuse_steps = 1: expected at most staleness_bound = 0"):
        load_config(config_of(mode="sync", wire={"reuse_steps": 1}))
    turns = {"embedding_workers": 5, "trainers": 2}
    with pytest.raises(UserError, match=r"reuse_steps = 2: expected at least 3: so many embedding workers"):
        load_config(config_of(ranks=turns, wire={"reuse_steps": 2}))
    with pytest.raises(UserError, match=r"reuse_steps = 3: expected 0 with exact = true and several"):
        load_config(config_of(ranks=turns, exact=True, wire={"reuse_steps": 3}))
