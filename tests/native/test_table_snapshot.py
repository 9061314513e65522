"""Snapshots: the rows of one moment, whatever happens while they are copied; and a table made from them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import Table

from .table_model import assert_same_rows, bucket_of
from .table_support import DISK, KEYS, OPTIMIZERS, arguments, make_table, pull_at, u64

BUCKETS = 4
steps_of_keys = st.lists(
    st.lists(st.sampled_from(KEYS), max_size=12, unique=True).map(sorted), min_size=1, max_size=12
)
kinds = st.sampled_from(
    [
        {},
        {"ttl": 2},
        {"eviction": "lfu"},
        {"admit_after": 2},
        {"eviction": "lfu", "admit_after": 3},
        {"storage": "bf16", "state_storage": "fp16"},
        {**DISK, "storage": "bf16", "state_storage": "fp16"},
        {**DISK, "ttl": 2},
        {**DISK, "admit_after": 2},
    ]
)


def take(table: Table, bucket: int, since: int = 0) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A bucket's part of the snapshot."""
    rows, decides = table.snapshot_buckets(bucket, bucket + 1, since)
    assert decides["counts"].tolist() == [len(rows["keys"])]
    return rows, {
        "age": int(decides["ages"][0]),
        "counted": int(decides["counted"][0]),
        "sightings": decides["sightings"][0],
    }


class History:
    """Steps of one batch each: pull, push, evict."""

    def __init__(self, config: dict[str, Any], bounds: tuple[int, ...] = (0, BUCKETS)) -> None:
        self.tables = [
            make_table(**{**config, "first_bucket": a, "end_bucket": b})
            for a, b in itertools.pairwise(bounds)
        ]
        self.step = 0
        self.seen: list[Any] = []  # what the outside world saw

    def run(self, keys: list[int]) -> None:
        self.step += 1
        for table in self.tables:
            mine = [k for k in keys if table.first_bucket <= bucket_of(k, BUCKETS) < table.end_bucket]
            rows, slots, epoch = pull_at(table, mine, self.step)
            grads = rows * np.float32(0.1) + np.float32(np.random.default_rng(self.step).normal())
            counts = table.push(u64(mine), slots, grads, self.step, epoch)
            self.seen.append((rows.tobytes(), counts, table.evict(self.step)))

    def rows(self) -> dict[str, np.ndarray]:
        parts = [t.export_bucket(b) for t in self.tables for b in range(t.first_bucket, t.end_bucket)]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def snapshot(self, *, full: bool = True, since: int = 0) -> list[Any]:
        """Of a moment at which nothing happens."""
        for table in self.tables:
            table.begin_snapshot(full)
        parts = [take(t, b, since) for t in self.tables for b in range(t.first_bucket, t.end_bucket)]
        removed = np.concatenate([t.removed_keys() for t in self.tables])
        for table in self.tables:
            table.end_snapshot()
        return [parts, removed]

    def restore(self, parts: list[Any], step: int) -> None:
        for table in self.tables:
            for bucket in range(table.first_bucket, table.end_bucket):
                rows, decides = parts[bucket]
                table.import_rows(rows)
                table.restore_bucket(bucket, **decides)
            table.set_next_step(step + 1)
        self.step = step


def assert_same_parts(got: list[Any], expected: list[Any]) -> None:
    for (rows, decides), (expected_rows, expected_decides) in zip(got, expected, strict=True):
        assert_same_rows(rows, expected_rows)
        assert decides["age"] == expected_decides["age"]
        assert decides["counted"] == expected_decides["counted"]
        np.testing.assert_array_equal(decides["sightings"], expected_decides["sightings"])


@settings(max_examples=150, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=kinds,
    before=steps_of_keys,
    during=steps_of_keys,
    order=st.permutations(range(BUCKETS)),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_a_snapshot_is_of_its_mark_and_disturbs_nothing(
    optimizer: str,
    kind: dict[str, Any],
    before: list[list[int]],
    during: list[list[int]],
    order: list[int],
    threads: int,
    data: st.DataObject,
) -> None:
    """Buckets are copied in any order between any of the steps that follow; a twin has no snapshot."""
    config = arguments(optimizer, **kind)
    twin, table = History(config), History({**config, "threads": threads})
    for keys in before:
        twin.run(keys)
        table.run(keys)
    (expected, _) = twin.snapshot()
    table.tables[0].begin_snapshot()
    when = sorted(data.draw(st.integers(0, len(during))) for _ in order)
    copied: dict[int, Any] = {}
    for number in range(len(during) + 1):
        for bucket, at in zip(order, when, strict=True):
            if at == number:
                copied[bucket] = take(table.tables[0], bucket)
        if number < len(during):
            twin.run(during[number])
            table.run(during[number])
    assert_same_parts([copied[b] for b in range(BUCKETS)], expected)
    table.tables[0].end_snapshot()
    assert table.tables[0].snapshot_bytes == 0
    assert table.seen == twin.seen
    assert_same_rows(table.rows(), twin.rows())


@settings(max_examples=150, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=kinds,
    before=steps_of_keys,
    after=steps_of_keys,
    cut=st.integers(0, BUCKETS),
)
def test_a_restored_table_goes_on_as_if_nothing_had_happened(
    optimizer: str, kind: dict[str, Any], before: list[list[int]], after: list[list[int]], cut: int
) -> None:
    config = arguments(optimizer, **kind)
    whole, split = History(config), History(config, (0, cut, BUCKETS))
    for keys in before:
        whole.run(keys)
    parts, _ = whole.snapshot()
    split.restore(parts, whole.step)
    assert_same_rows(split.rows(), whole.rows())
    whole.seen.clear()
    one = History(config)
    one.restore(parts, whole.step)
    for keys in after:
        whole.run(keys)
        one.run(keys)
        split.run(keys)
    assert one.seen == whole.seen
    assert_same_rows(split.rows(), whole.rows())
    assert_same_parts(one.snapshot()[0], whole.snapshot()[0])


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([{}, {"ttl": 2}, {"admit_after": 2}, DISK, {**DISK, "ttl": 2}]),
    before=steps_of_keys,
    after=steps_of_keys,
)
def test_a_full_and_an_incremental_snapshot_are_the_whole(
    kind: dict[str, Any], before: list[list[int]], after: list[list[int]]
) -> None:
    """Rows of the full one that went are left out; rows that changed are those of the incremental one."""
    table = History(arguments("adam", **kind))
    for keys in before:
        table.run(keys)
    full, _ = table.snapshot()
    base = table.step
    for keys in after:
        table.run(keys)
    changed, removed = table.snapshot(full=False, since=base)
    expected, _ = table.snapshot()
    merged = []
    for (old, _), (new, decides) in zip(full, changed, strict=True):
        stays = ~np.isin(old["keys"], removed) & ~np.isin(old["keys"], new["keys"])
        rows = {name: np.concatenate([old[name][stays], new[name]]) for name in old}
        order = np.argsort(rows["keys"])
        merged.append(({name: array[order] for name, array in rows.items()}, decides))
    assert_same_parts(merged, expected)


def test_only_what_changes_before_its_bucket_is_copied_is_kept() -> None:
    table = History(arguments("adagrad", bucket_capacity=100))
    table.run(sorted(KEYS))
    it = table.tables[0]
    it.begin_snapshot()
    take(it, 0)
    table.run([k for k in sorted(KEYS) if bucket_of(k, BUCKETS) == 0])
    assert it.snapshot_bytes == 0
    table.run([k for k in sorted(KEYS) if bucket_of(k, BUCKETS) == 1])
    assert it.snapshot_bytes > 0
    take(it, 1)
    assert it.snapshot_bytes == 0


def test_several_buckets_at_once_are_one_after_the_other() -> None:
    whole, parts = (History(arguments("adam", admit_after=2, bucket_capacity=100)) for _ in range(2))
    for history in (whole, parts):
        for _ in range(3):
            history.run(sorted(KEYS))
        history.tables[0].begin_snapshot()
    rows, decides = whole.tables[0].snapshot_buckets(0, BUCKETS)
    each = [parts.tables[0].snapshot_buckets(b, b + 1) for b in range(BUCKETS)]
    for got, expected in ((rows, [r for r, _ in each]), (decides, [d for _, d in each])):
        for name, array in got.items():
            np.testing.assert_array_equal(array, np.concatenate([part[name] for part in expected]))
    assert decides["sightings"].any()
    assert len(rows["keys"]) == len(KEYS)


def test_snapshots_refuse_what_makes_no_sense() -> None:
    table = make_table(**arguments())
    assert not table.can_be_incremental
    with pytest.raises(RuntimeError, match="no snapshot is under way"):
        take(table, 0)
    table.begin_snapshot()
    with pytest.raises(RuntimeError, match="under way"):
        table.begin_snapshot()
    rows, decides = take(table, 0)
    with pytest.raises(RuntimeError, match="copied already"):
        take(table, 0)
    with pytest.raises(RuntimeError, match="under way"):
        table.import_rows(rows)
    table.end_snapshot()
    assert table.can_be_incremental
    with pytest.raises(ValueError, match="sightings: got 3 counts, expected 0"):
        table.restore_bucket(0, 0, 0, np.zeros(3, np.uint8))
    assert decides["sightings"].shape == (0,)
    lfu = make_table(**arguments(eviction="lfu"))
    lfu.begin_snapshot()
    lfu.end_snapshot()
    assert not lfu.can_be_incremental


def test_after_very_many_removals_only_a_full_snapshot_is_possible() -> None:
    table = make_table(**arguments(bucket_capacity=1))
    table.begin_snapshot()
    table.end_snapshot()
    for step in range(1, 2000):
        rows, slots, epoch = pull_at(table, [step], step)
        table.push(u64([step]), slots, rows, step, epoch)
        table.evict(step)
    assert not table.can_be_incremental
