"""Histories of tables with and without a disk tier."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from persia_hpc._native import Table, mix
from persia_hpc.checkpoint.parts import COLUMNS
from persia_hpc.checkpoint.records import columns_of, record_type

from .table_model import assert_same_rows
from .table_support import lookup, make_table, pull_at

IDS = 160
ALL_KEYS = np.sort(mix(np.arange(IDS, dtype=np.uint64)))
kinds = st.sampled_from(
    [
        {},
        {"ttl": 4},
        {"ttl": 70},
        {"admit_probability": 0.7},
        {"ttl": 5, "admit_probability": 0.7},
        {"storage": "bf16", "state_storage": "fp16"},
        {"storage": "fp16", "dim": 5},
    ]
)

with_lfu = kinds | st.sampled_from([{"eviction": "lfu"}, {"eviction": "lfu", "admit_probability": 0.7}])


class Steps:
    """Steps of one batch each, whose gradients come `bound` steps after their pull."""

    def __init__(self, bound: int, *, ids: int = IDS, **config: Any) -> None:
        self.table, self.bound = make_table(**config), bound
        self.keys = np.sort(mix(np.arange(ids, dtype=np.uint64)))
        self.step, self.seen = 0, []
        self.in_flight: list[tuple[int, Any, Any, int, Any]] = []

    def run(self, seed: int, spread: float) -> None:
        self.step += 1
        random = np.random.default_rng(seed)
        ids = len(self.keys)
        center = random.integers(ids)
        chosen = np.unique((center + random.normal(0, spread, 24).astype(int)) % ids)
        keys = self.keys[chosen]
        rows, slots, epoch = pull_at(self.table, keys, self.step)
        grads = random.normal(size=rows.shape).astype(np.float32)
        self.seen.append(rows.tobytes())
        self.in_flight.append((self.step, keys, slots, epoch, grads))
        if len(self.in_flight) > self.bound:
            self.push()
        asked = self.keys[random.integers(0, ids, 3)]
        self.seen.append(lookup(self.table, np.unique(asked)).tobytes())

    def push(self) -> None:
        step, keys, slots, epoch, grads = self.in_flight.pop(0)
        self.seen.append(self.table.push(keys, slots, grads, step, epoch))
        self.seen.append(self.table.evict(step))

    def state(self) -> tuple[int, int, int]:
        return self.table.num_rows, self.table.created_rows, self.table.evicted_rows


def copied_columns(table: Table, copied: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of `copy_buckets` for a file, also if they come as records."""
    if not table.record_bytes:
        return copied
    records = copied["records"].view(record_type(table))[:, 0]
    columns = columns_of(records, COLUMNS)
    return {name: columns[name] for name in COLUMNS if name in columns}


def fill(table: Table, count: int, step: int = 1) -> None:
    """Makes rows of ids below `count`, some at a time: steps that are each over the capacity."""
    keys = np.sort(mix(np.arange(count, dtype=np.uint64)))
    for part in np.array_split(keys, max(1, count // 2000)):
        _, slots, epoch = pull_at(table, part, step)
        table.push(part, slots, np.ones((len(part), table.dim), np.float32), step, epoch)
        table.evict(step)


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], kind: dict[str, Any]) -> None:
    """The same rows with the same states; lfu's counts start just above those of rows that went to disk."""
    if kind.get("eviction") == "lfu":
        assert (got["stamps"] >= expected["stamps"]).all()
        got, expected = ({**rows, "stamps": rows["stamps"] * 0} for rows in (got, expected))
    assert_same_rows(got, expected)
