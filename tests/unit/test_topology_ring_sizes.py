"""Rings are large enough for the batches of a configuration, and no larger than a node has memory for."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import Outgoing
from persia_hpc.config import load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.protocol.row_batch import pack_row_batch
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.topology.channels import LEAST, MOST, fitting, ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import make_plan

SCHEMA = DatasetSchema(
    (FeatureSchema("a"), FeatureSchema("b", multi=True, mean_length=3.0)), ("x", "y"), ("label",)
)


def config_of(**changes: Any) -> Any:
    return load_config(
        {
            "data": {"train": "t.h5", "batch_size": changes.pop("batch_size", 1000)},
            "tables": {"default": {"dim": changes.pop("dim", 16), "optimizer": {"name": "sgd", "lr": 1.0}}},
            "model": {"class": "dlrm"},
            **changes,
        }
    )


def unwritten(*arrays: Any) -> int:
    return int(Outgoing(1, 0, 0, 0, list(arrays)).unwritten_bytes)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3000), st.sampled_from([1, 3, 16, 64]), st.sampled_from(sorted(WIRES)), st.integers(1, 3)
)
def test_a_batch_without_repeated_ids_fits(batch_size: int, dim: int, wire: str, num_trainers: int) -> None:
    """Every record of one batch, as the engines make them, in its ring; half of it in one entry."""
    config = config_of(batch_size=batch_size, dim=dim, wire={"rows": wire, "gradients": wire})
    layout = make_layout(config, SCHEMA)
    size = ring_sizes(config, layout, SCHEMA, num_servers=1, num_trainers=num_trainers)
    n = -(-batch_size // num_trainers)
    sample = SampleBatch(
        {
            "a": IdColumn(np.arange(n, dtype=np.uint64)),
            "b": IdColumn(np.arange(3 * n, dtype=np.uint64), np.arange(0, 3 * n + 1, 3, dtype=np.uint32)),
        },
        np.zeros((n, 2), np.float32),
        np.zeros((n, 1), np.float32),
    )
    engine = EmbeddingWorker(layout)
    batch = engine.prepare(sample, step=1, trainer=0, num_global=batch_size)
    request = engine.request(batch)
    rows = [np.zeros(WIRES[wire].shape(4 * n, dim), WIRES[wire].dtype)]
    engine.add_rows(batch, 0, rows)
    records = {
        "pull": unwritten(request.keys.part(0), request.counts.part(0)),
        "rows": unwritten(*rows),
        "push": unwritten(*rows),
        "gradients": unwritten(*rows),
        "feed": unwritten(*pack_row_batch(engine.assemble(batch))),
    }
    for kind, num_bytes in records.items():
        assert num_bytes + 64 <= getattr(size, kind), kind
        assert num_bytes / 2 <= getattr(size, kind) * 3 / 8, kind
        assert getattr(size, kind) <= 4 / 3 * num_bytes + 160_000, kind  # indices may be narrow


MIXED = DatasetSchema(
    (
        FeatureSchema("a"),
        FeatureSchema("b", multi=True, mean_length=3.0),
        FeatureSchema("c", multi=True),
        FeatureSchema("d"),
    ),
    ("x", "y"),
    ("label", "other"),
    has_weight=True,
    has_group=True,
)


@pytest.mark.parametrize(
    ("batch_size", "dim", "rows", "gradients", "reuse", "servers", "trainers", "expected"),
    [
        (1000, 16, "fp32", "fp32", 0, 1, 1, (204800, 958464, 958464, 1200128, 958464)),
        (4096, 5, "bf16", "scaled_fp16", 2, 2, 1, (405504, 577536, 434176, 1835008, 868352)),
        (777, 64, "fp16", "bf16", 0, 3, 2, (110592, 368640, 368640, 856064, 757760)),
        (65536, 8, "scaled_fp16", "fp16", 1, 2, 4, (1327104, 2277376, 2830336, 9199616, 3592192)),
        (32, 4, "fp32", "scaled_fp16", 0, 1, 3, (90112, 90112, 90112, 94208, 90112)),
    ],
)
def test_sizes_stay_what_they_were(
    batch_size: int,
    dim: int,
    rows: str,
    gradients: str,
    reuse: int,
    servers: int,
    trainers: int,
    expected: tuple[int, ...],
) -> None:
    """Numbers of version 0.1.0: a job that goes on with another version must fit into the memory it had."""
    config = config_of(
        batch_size=batch_size,
        staleness_bound=4,
        tables={
            "default": {"dim": dim},
            "d": {"dim": 3, "hash": {"size": 500, "rounds": 2}, "storage": "bf16", "optimizer": "adam"},
        },
        features={"b": {"max_length": 2}, "c": {"max_length": 7}, "d": {"table": "d"}},
        wire={"rows": rows, "gradients": gradients, "reuse_steps": reuse},
    )
    size = ring_sizes(config, make_layout(config, MIXED), MIXED, num_servers=servers, num_trainers=trainers)
    assert astuple(size) == (*expected, 0)


@given(st.integers(1, 200), st.integers(1, 5), st.sampled_from(sorted(WIRES)))
def test_bytes_of_a_row_are_those_of_its_array(dim: int, count: int, wire: str) -> None:
    rows = np.zeros(WIRES[wire].shape(count, dim), WIRES[wire].dtype)
    assert count * WIRES[wire].row_bytes(dim) == rows.nbytes


@pytest.mark.parametrize("mode", ["hybrid", "fresh"])
def test_a_given_size_holds_for_all(mode: str) -> None:
    """For patches too, where there are any; elsewhere they have no rings."""
    config = config_of(transport={"ring_bytes": "1 MiB"}, mode=mode)
    size = ring_sizes(config, make_layout(config, SCHEMA), SCHEMA, num_servers=2, num_trainers=2)
    assert set(astuple(size)) == ({1 << 20} if mode == "fresh" else {1 << 20, 0})
    assert (size.patch == 0) == (mode == "hybrid")


@pytest.mark.parametrize("mode", ["hybrid", "fresh"])
@pytest.mark.parametrize("free", [1 << 20, 3 << 19, 1 << 30])
def test_rings_shrink_to_what_the_fullest_node_has(free: int, mode: str) -> None:
    config = config_of(mode=mode)
    plan = make_plan(
        {"parameter_servers": 1, "embedding_workers": 2, "trainers": 2}, [0, 0, 0, 1, 1], per_node=False
    )
    wanted = ring_sizes(config, make_layout(config, SCHEMA), SCHEMA, num_servers=1, num_trainers=2)
    size = fitting(plan, wanted, {0: free, 1: 1 << 40})
    shared = ring_memory(plan, size)[0]
    used = sum(n for n, member in zip(shared, plan.members, strict=True) if member.node == 0)
    assert used <= free
    assert (size == wanted) == (free == 1 << 30)
    assert min(n for n in astuple(size) if n) >= LEAST


CRITEO = DatasetSchema(
    tuple(FeatureSchema(f"f{i:02d}") for i in range(26)), tuple(f"x{i}" for i in range(13)), ("click",)
)
LARGE = {"batch_size": 65536, "dim": 128, "wire": {"rows": "fp16", "gradients": "scaled_fp16"}}


def test_large_batches_of_skewed_ids_come_whole_to_a_trainer() -> None:
    """26 features of 1 M ids each by Zipf 1.05, as a GPU trains on: feed and gradients are one entry each."""
    config = config_of(**LARGE)
    layout = make_layout(config, CRITEO)
    size = ring_sizes(config, layout, CRITEO, num_servers=4, num_trainers=1)
    rng, n = np.random.default_rng(1), LARGE["batch_size"]
    weights = np.cumsum(np.arange(1, 1_000_001) ** -1.05)
    columns = {
        f.name: IdColumn(np.searchsorted(weights, rng.random(n) * weights[-1]).astype(np.uint64))
        for f in CRITEO.features
    }
    sample = SampleBatch(columns, np.zeros((n, 13), np.float32), np.zeros((n, 1), np.float32))
    engine = EmbeddingWorker(layout)
    batch = engine.prepare(sample, step=1, trainer=0, num_global=n)
    unique = len(batch.dedup.keys)
    rows = np.empty(WIRES["fp16"].shape(unique, 128), np.float16)
    engine.add_rows(batch, 0, [rows])
    feed = unwritten(*pack_row_batch(engine.assemble(batch)))
    gradients = unique * WIRES["scaled_fp16"].row_bytes(128)
    assert feed > MOST * 3 / 8  # which is what the limit of other rings would take
    assert feed + 64 <= size.feed * 3 / 8
    assert gradients + 200 <= size.gradients * 3 / 8
    assert max(size.pull, size.push, size.rows) <= MOST


@pytest.mark.parametrize("nodes", [[0, 0, 0, 0], [0, 0, 0, 1]])
@pytest.mark.parametrize("share", [0.5, 0.99, 1.01, 4.0])
def test_rings_above_the_limit_give_way_before_others_do(nodes: list[int], share: float) -> None:
    """share: of the memory that the larger rings want, in shared memory or for other nodes."""
    config = config_of(**LARGE)
    plan = make_plan({"parameter_servers": 1, "embedding_workers": 2, "trainers": 1}, nodes, per_node=False)
    wanted = ring_sizes(config, make_layout(config, CRITEO), CRITEO, num_servers=1, num_trainers=1)
    assert wanted.feed > MOST
    need = dict.fromkeys(nodes, 0)
    for member, num_bytes in zip(plan.members, ring_memory(plan, wanted)[1], strict=True):
        need[member.node] += num_bytes
    size = fitting(plan, wanted, {n: int(share * b / 0.75) for n, b in need.items()})
    if share >= 1:
        assert size == wanted
    else:
        assert max(astuple(size)) <= MOST
    much = dict.fromkeys(nodes, 1 << 50)  # as a tmpfs without a limit says
    memory = {n: int(share * b / 0.75) for n, b in need.items()}
    assert fitting(plan, wanted, much, memory) == (wanted if share >= 1 else wanted.capped())
    if share == 0.99:  # with that limit they have room
        assert size == wanted.capped()
        assert fitting(plan, wanted, {}) == size  # memory that isn't known is no reason
