"""What a table does when its disk is full, or can't be written."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import DiskError, mix
from persia_hpc.errors import PersiaError

from .table_model import assert_same_rows
from .table_support import DISK, arguments, export, lookup, make_table, pull_at
from .tier_support import IDS, Steps, fill, kinds


def test_a_full_disk_says_so() -> None:
    """Rows stay in memory, but for those of an import: the run that goes on has no others to keep."""
    config = arguments("adagrad", dim=16, **{**DISK, "disk_bytes": 200_000})
    table = make_table(**config)
    fill(table, 1000)
    assert table.disk_problem == ""
    fill(table, 5000)
    said = r"full: this part of a table has .* disk.capacity"
    assert re.search(said, table.disk_problem)
    assert table.num_rows == 5000
    assert table.disk_bytes <= 200_000
    again = make_table(**config)
    rows = {k: np.concatenate([part[k] for part in export(table, 4)]) for k in export(table, 1)[0]}
    with pytest.raises(DiskError, match=said) as error:
        again.import_rows(rows)
    assert isinstance(error.value, PersiaError)


@contextmanager
def no_writes() -> Iterator[None]:
    """Files can't grow, nor be written beyond their first bytes; reads are as always."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(max_examples=80, deadline=None)
@given(
    kind=kinds,
    capacity=st.integers(1, 40),
    bound=st.integers(0, 2),
    threads=st.integers(1, 2),
    steps=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=20, max_size=120),
)
def test_writes_that_fail_lose_nothing(
    kind: dict[str, Any], capacity: int, bound: int, threads: int, steps: list[tuple[int, bool]]
) -> None:
    """What the disk doesn't take stays in memory, and goes there once it can be written again."""
    config = arguments("adagrad", num_buckets=2, **kind)
    roomy = Steps(bound, **{**config, "bucket_capacity": IDS})
    tiered = Steps(bound, **{**config, **DISK, "bucket_capacity": capacity, "threads": threads})
    for seed, fails in steps:
        roomy.run(seed, 40.0)
        with no_writes() if fails else nullcontext():
            tiered.run(seed, 40.0)
    assert tiered.seen == roomy.seen
    assert tiered.state() == roomy.state()
    for got, expected in zip(export(tiered.table, 2), export(roomy.table, 2), strict=True):
        assert_same_rows(got, expected)


def test_a_failed_write_is_named_and_made_up_for() -> None:
    table = make_table(**arguments("adagrad", dim=16, num_buckets=2, bucket_capacity=50, **DISK))
    with no_writes():
        fill(table, 2000)
        assert "can't write: File too large" in table.disk_problem
        assert table.num_rows - table.cold_rows > 1500
    table.evict(2)
    assert table.num_rows - table.cold_rows == 100
    assert table.num_rows == 2000


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_what_a_disk_refuses_is_the_first_to_go_once_it_can(eviction: str) -> None:
    """As if nothing had been refused: the rows of the last steps are those in memory."""
    config = arguments("adagrad", num_buckets=1, bucket_capacity=100, eviction=eviction, **DISK)
    table = make_table(**config)
    keys = np.sort(mix(np.arange(400, dtype=np.uint64)))
    parts = np.random.default_rng(1).permutation(keys).reshape(40, 10)
    for step, part in enumerate(parts, 1):
        with no_writes() if step > 20 else nullcontext():
            for _ in range(step if eviction == "lfu" else 1):
                pull_at(table, np.sort(part), step)
            table.evict(step)
    assert table.disk_problem
    table.evict(41)
    assert table.num_rows - table.cold_rows == 100
    pull_at(table, np.sort(parts[-10:].ravel()), 42)
    assert table.from_disk_rows == 0


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    capacity=st.integers(1, 60),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=80),
)
def test_what_a_full_disk_evicts_is_what_goes_without_one(
    kind: dict[str, Any], capacity: int, seeds: list[int]
) -> None:
    """With room for no row: the same rows are there, and those that went are counted."""
    config = arguments("adagrad", num_buckets=2, bucket_capacity=capacity, **kind)
    alone = Steps(0, **config)
    full = Steps(0, **config, **{**DISK, "disk_bytes": 1, "full_disk_evicts": True})
    for seed in seeds:
        alone.run(seed, 40.0)
        full.run(seed, 40.0)
    assert full.seen == alone.seen
    assert full.state() == alone.state()
    assert full.table.cold_rows == 0
    assert full.table.disk_full_rows <= full.table.evicted_rows
    if not kind.get("ttl"):
        assert full.table.disk_full_rows == full.table.evicted_rows
    assert bool(full.table.disk_full_rows) <= ("is full" in full.table.disk_problem)


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 30),
    room=st.integers(1, 40_000),
    bound=st.integers(0, 2),
    steps=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=30, max_size=120),
)
def test_a_disk_with_little_room_evicts_the_others(
    capacity: int, room: int, bound: int, steps: list[tuple[int, bool]]
) -> None:
    """Some writes fail too. Memory and disk stay within their capacities, and each row is counted once."""
    config = arguments("adagrad", dim=16, num_buckets=2, bucket_capacity=capacity)
    tiered = Steps(bound, **config, **{**DISK, "disk_bytes": room, "full_disk_evicts": True})
    for seed, fails in steps:
        with no_writes() if fails else nullcontext():
            tiered.run(seed, 60.0)
    while tiered.in_flight:
        tiered.push()
    table = tiered.table
    assert table.num_rows - table.cold_rows <= 2 * capacity
    assert table.disk_bytes <= room
    assert table.num_rows == table.created_rows - table.evicted_rows
    assert table.disk_full_rows == table.evicted_rows
    assert table.cold_rows == table.to_disk_rows - table.from_disk_rows
    held = [rows["keys"] for rows in export(table, 2)]
    assert sum(map(len, held)) == table.num_rows
    assert lookup(table, np.sort(np.concatenate(held))).any(axis=1).all()
