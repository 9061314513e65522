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
from persia_hpc.topology.channels import LEAST, fitting, ring_memory
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
    keys, counts, _ = engine.request(batch, 0)
    rows = [np.zeros(WIRES[wire].shape(4 * n, dim), WIRES[wire].dtype)]
    engine.add_rows(batch, 0, rows)
    records = {
        "pull": unwritten(keys, counts),
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
    assert astuple(size) == expected


@given(st.integers(1, 200), st.integers(1, 5), st.sampled_from(sorted(WIRES)))
def test_bytes_of_a_row_are_those_of_its_array(dim: int, count: int, wire: str) -> None:
    rows = np.zeros(WIRES[wire].shape(count, dim), WIRES[wire].dtype)
    assert count * WIRES[wire].row_bytes(dim) == rows.nbytes


def test_a_given_size_holds_for_all() -> None:
    config = config_of(transport={"ring_bytes": "1 MiB"})
    size = ring_sizes(config, make_layout(config, SCHEMA), SCHEMA, num_servers=2, num_trainers=2)
    assert set(astuple(size)) == {1 << 20}


@pytest.mark.parametrize("free", [1 << 20, 3 << 19, 1 << 30])
def test_rings_shrink_to_what_the_fullest_node_has(free: int) -> None:
    config = config_of()
    plan = make_plan(
        {"parameter_servers": 1, "embedding_workers": 2, "trainers": 2}, [0, 0, 0, 1, 1], per_node=False
    )
    wanted = ring_sizes(config, make_layout(config, SCHEMA), SCHEMA, num_servers=1, num_trainers=2)
    size = fitting(plan, wanted, {0: free, 1: 1 << 40})
    shared = ring_memory(plan, size)[0]
    used = sum(n for n, member in zip(shared, plan.members, strict=True) if member.node == 0)
    assert used <= free
    assert (size == wanted) == (free == 1 << 30)
    assert min(astuple(size)) >= LEAST
