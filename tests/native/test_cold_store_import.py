"""Loading a checkpoint into a table with a disk tier: what stays in memory, and that no row changes."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import DiskError, mix

from .table_model import assert_same_rows
from .table_support import DISK, OPTIMIZERS, arguments, export, make_table, pull_at
from .tier_support import with_lfu

ROWS = 600


def rows_of(table: Any, seed: int, count: int = ROWS) -> dict[str, np.ndarray]:
    """Rows as a checkpoint has them, with state and any stamps."""
    random = np.random.default_rng(seed)
    keys = np.sort(mix(np.arange(count, dtype=np.uint64)))
    rows = {"keys": keys, "rows": random.normal(size=(count, table.dim)).astype(np.float32)}
    rows["state"] = random.random((count, table.state_width)).astype(np.float32)
    rows["stamps"] = random.integers(0, 20, count).astype(np.uint32)
    if "steps" in table.export_bucket(0):
        rows["steps"] = random.integers(0, 9, count).astype(np.uint32)
    return rows


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@settings(max_examples=120, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=with_lfu,
    buckets=st.sampled_from([1, 4]),
    capacity=st.integers(1, 200),
    threads=st.integers(1, 2),
    cuts=st.lists(st.integers(0, ROWS), max_size=6),
    seed=st.integers(0, 99),
    state=st.booleans(),
)
def test_rows_are_those_of_a_table_in_memory(
    optimizer: str,
    kind: dict[str, Any],
    buckets: int,
    capacity: int,
    threads: int,
    cuts: list[int],
    seed: int,
    state: bool,
) -> None:
    """In any pieces; then some are given anew, as an incremental checkpoint does."""
    config = arguments(optimizer, num_buckets=buckets, **{**kind, "ttl": 0})
    roomy = make_table(**{**config, "bucket_capacity": ROWS})
    tiered = make_table(**{**config, **DISK, "bucket_capacity": capacity, "threads": threads})
    first, again = rows_of(roomy, seed), rows_of(roomy, seed + 100)
    changed = np.flatnonzero(np.random.default_rng(seed).random(ROWS) < 0.4)
    again = {name: values[changed] for name, values in again.items()}
    bounds = sorted({0, ROWS, *cuts})
    for table in (roomy, tiered):
        for rows in (first, again):
            given_now = {k: v for k, v in rows.items() if state or k not in ("state", "steps")}
            for begin, end in itertools.pairwise(bounds):
                table.import_rows({k: v[begin:end] for k, v in given_now.items()})
    assert tiered.num_rows == roomy.num_rows == ROWS
    assert tiered.num_rows - tiered.cold_rows <= buckets * capacity
    for got, expected in zip(export(tiered, buckets), export(roomy, buckets), strict=True):
        assert_same_rows(got, expected)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_the_rows_that_eviction_would_keep_stay_in_memory(eviction: str, pieces: int) -> None:
    config = arguments("adagrad", num_buckets=2, bucket_capacity=64, eviction=eviction, **DISK)
    table = make_table(**config)
    rows = rows_of(table, 1)
    for part in np.array_split(np.arange(ROWS), pieces):
        table.import_rows({name: values[part] for name, values in rows.items()})
    assert table.num_rows - table.cold_rows == 128
    assert table.to_disk_rows == table.from_disk_rows + ROWS - 128
    for bucket in export(table, 2):
        order = np.lexsort((bucket["keys"], bucket["stamps"]))
        pull_at(table, np.sort(bucket["keys"][order[-64:]]), 30)
    assert table.from_disk_rows == 0


def test_rows_of_a_bucket_go_to_disk_without_a_way_through_memory() -> None:
    """Rows that memory has no room for take none of it."""
    config = arguments("adagrad", dim=16, num_buckets=1, bucket_capacity=64, **DISK)
    small, large = (make_table(**{**config, "disk_bytes": 1 << 26}) for _ in range(2))
    small.import_rows(rows_of(small, 1, 2000))
    large.import_rows(rows_of(large, 1, 50_000))
    assert large.cold_rows == 50_000 - 64
    assert (large.memory_bytes - small.memory_bytes) / 48_000 < 16


def test_a_disk_that_is_full_meanwhile_says_so_or_drops_what_goes() -> None:
    config = arguments("adagrad", dim=16, num_buckets=2, bucket_capacity=64, **{**DISK, "disk_bytes": 40_000})
    table = make_table(**config)
    rows = rows_of(table, 1, 2000)
    with pytest.raises(DiskError, match=r"full: this part of a table has .* disk.capacity"):
        table.import_rows(rows)
    drops = make_table(**config, full_disk_evicts=True)
    drops.import_rows(rows)
    assert drops.num_rows - drops.cold_rows == 128
    assert drops.disk_full_rows == drops.evicted_rows == 2000 - drops.num_rows > 1000
    assert re.search("is full", drops.disk_problem)
    kept = joined(export(drops, 2))
    where = np.searchsorted(rows["keys"], kept["keys"])
    assert (rows["rows"][where] == kept["rows"]).all()


@pytest.mark.parametrize("sort", [True, False])
def test_the_last_of_a_key_that_is_given_twice_wins(sort: bool) -> None:
    """As in memory, also where the first is to stay in memory and the last is the older one."""
    config = arguments("adagrad", num_buckets=1, bucket_capacity=64)
    roomy, tiered = make_table(**{**config, "bucket_capacity": ROWS}), make_table(**{**config, **DISK})
    rows = rows_of(roomy, 1)
    again = {name: values[::7] for name, values in rows_of(roomy, 2).items()}
    rows["stamps"][::7], again["stamps"] = 30, np.zeros_like(again["stamps"])
    both = joined([rows, again])
    order = np.argsort(both["keys"], kind="stable") if sort else np.arange(len(both["keys"]))
    for table in (roomy, tiered):
        table.import_rows({name: values[order] for name, values in both.items()})
    assert tiered.num_rows == roomy.num_rows == ROWS
    assert_same_rows(export(tiered, 1)[0], export(roomy, 1)[0])
