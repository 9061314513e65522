"""A table with a disk tier is, to whoever uses it, one with memory for all its rows: the same bits."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import DiskError, PendingPull, TableSet, mix

from .table_model import assert_same_rows
from .table_support import DISK, OPTIMIZERS, arguments, export, lookup, make_table, pull_at, u64
from .tier_support import ALL_KEYS, IDS, Steps, assert_same, fill, with_lfu


@settings(max_examples=150, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=with_lfu,
    buckets=st.sampled_from([1, 2, 8]),
    capacity=st.integers(1, 80),
    threads=st.integers(1, 2),
    bound=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 150),
    spread=st.sampled_from([4.0, 30.0, 300.0]),
)
def test_any_history_is_that_of_a_table_in_memory(
    optimizer: str,
    kind: dict[str, Any],
    buckets: int,
    capacity: int,
    threads: int,
    bound: int,
    seed: int,
    count: int,
    spread: float,
) -> None:
    """Rows, look-ups, counts, what goes by its time to live, and in the end all rows with their states."""
    config = arguments(optimizer, num_buckets=buckets, **kind)
    roomy = Steps(bound, **{**config, "bucket_capacity": IDS})
    tiered = Steps(bound, **{**config, **DISK, "bucket_capacity": capacity, "threads": threads})
    for number in range(count):
        for each in (roomy, tiered):
            each.run(seed + number, spread)
    assert tiered.seen == roomy.seen
    assert tiered.state() == roomy.state()
    for got, expected in zip(export(tiered.table, buckets), export(roomy.table, buckets), strict=True):
        assert_same(got, expected, kind)
    while tiered.in_flight:
        tiered.push()
    in_memory = tiered.table.num_rows - tiered.table.cold_rows
    assert in_memory <= buckets * capacity
    table = tiered.table
    assert table.cold_rows <= table.to_disk_rows - table.from_disk_rows  # others went by their time to live


@settings(max_examples=80, deadline=None)
@given(
    after=st.integers(2, 4),
    kind=st.sampled_from([{}, {"ttl": 6}, {"ttl": 40, "admit_probability": 0.8}, {"eviction": "lfu"}]),
    capacity=st.integers(1, 8),
    threads=st.integers(1, 2),
    bound=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 150),
    spread=st.sampled_from([4.0, 30.0, 300.0]),
)
def test_sightings_admit_the_same_rows_as_in_memory(
    after: int,
    kind: dict[str, Any],
    capacity: int,
    threads: int,
    bound: int,
    seed: int,
    count: int,
    spread: float,
) -> None:
    """Their counts have as many cells for up to 16 rows of a bucket, here the most that any has."""
    config = arguments("adagrad", num_buckets=8, admit_after=after, **kind)
    roomy = Steps(bound, ids=64, **{**config, "bucket_capacity": 16})
    tiered = Steps(bound, ids=64, **{**config, **DISK, "bucket_capacity": capacity, "threads": threads})
    assert roomy.table.sightings_per_bucket == tiered.table.sightings_per_bucket
    for number in range(count):
        for each in (roomy, tiered):
            each.run(seed + number, spread)
    assert tiered.seen == roomy.seen
    assert tiered.state() == roomy.state()
    for got, expected in zip(export(tiered.table, 8), export(roomy.table, 8), strict=True):
        assert_same(got, expected, kind)


@settings(max_examples=60, deadline=None)
@given(
    kind=with_lfu,
    capacity=st.integers(1, 20),
    bound=st.integers(0, 2),
    before=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40),
    after=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
)
def test_snapshots_are_those_of_a_table_in_memory(
    kind: dict[str, Any], capacity: int, bound: int, before: list[int], after: list[int]
) -> None:
    """Full and incremental ones, taken while rows come and go; and a table made of them goes on the same."""
    config = arguments("adam", **kind)
    tiers = {**config, **DISK, "bucket_capacity": capacity}
    pair = [Steps(bound, **{**config, "bucket_capacity": IDS}), Steps(bound, **tiers)]
    taken: list[list[Any]] = []
    for each in pair:
        for seed in before:
            each.run(seed, 40.0)
        while each.in_flight:
            each.push()
        parts = [_snapshot(each, after[:3], True, 0)]
        base = each.step
        for seed in after:
            each.run(seed, 40.0)
        while each.in_flight:
            each.push()
        if each.table.can_be_incremental:
            parts.append(_snapshot(each, after[-3:], False, base - len(after[:3])))
        taken.append(parts)
    for got, expected in zip(taken[1], taken[0], strict=False):
        for bucket, other in zip(got, expected, strict=True):
            assert_same(bucket, other, kind)
    again = Steps(0, **tiers)
    for rows in taken[1][0]:
        again.table.import_rows(rows)
    assert again.table.num_rows == sum(len(rows["keys"]) for rows in taken[1][0])
    for rows, bucket in zip(taken[1][0], export(again.table, 4), strict=True):
        assert_same_rows(bucket, rows)
        again.table.import_rows(rows)  # rows that are there, on disk too, are replaced
    assert again.table.num_rows == sum(len(rows["keys"]) for rows in taken[1][0])
    assert again.table.num_rows - again.table.cold_rows <= 4 * capacity


def _snapshot(steps: Steps, meanwhile: list[int], full: bool, since: int) -> list[dict[str, np.ndarray]]:
    steps.table.begin_snapshot(full)
    second = steps.table.snapshot_buckets(2, 3, since)[0]
    for seed in meanwhile:
        steps.run(seed, 100.0)
    found = [steps.table.snapshot_buckets(b, b + 1, since)[0] for b in (0, 1, 3)]
    steps.table.end_snapshot()
    while steps.in_flight:
        steps.push()
    return [*found[:2], second, found[2]]


@settings(max_examples=40, deadline=None)
@given(kind=with_lfu, capacity=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), count=st.integers(2, 60))
def test_early_answers_and_patches_are_those_of_a_table_in_memory(
    kind: dict[str, Any], capacity: int, seed: int, count: int
) -> None:
    """Rows are looked up a step before they are pulled, and then those that differ are found."""
    config = arguments("adagrad", **kind)
    seen: list[list[bytes]] = []
    for more in ({"bucket_capacity": IDS}, {"bucket_capacity": capacity, **DISK}):
        table = make_table(**{**config, **more})
        tables, random = TableSet([table], [0], [table.dim], ahead=True), np.random.default_rng(seed)
        early: list[tuple[PendingPull, np.ndarray]] = []
        seen.append([])
        for step in range(1, count + 2):
            keys = ALL_KEYS[np.unique(random.integers(0, IDS, 20))]
            pull = PendingPull(step, 0, keys, np.array([len(keys)], np.uint32))
            rows = np.empty((len(keys), table.dim), np.float32)
            tables.look_ahead(pull, [rows], max(0, step - 2))
            early.append((pull, rows))
            if step == 1:
                continue
            asked, before = early.pop(0)
            tables.mark_differing(asked)
            tables.pull_again(asked)
            ((positions, patch),) = tables.differing(asked, "fp32")
            before[positions] = patch
            tables.push([(asked, [before * np.float32(0.5)])], step - 1)
            tables.evict(step - 1)
            seen[-1].append(before.tobytes())
    assert seen[0] == seen[1]


def test_reads_ahead_change_nothing() -> None:
    config = arguments("adagrad", **DISK)
    tables = [make_table(**config), make_table(**config)]
    sets = [TableSet([table], [0], [3]) for table in tables]
    for step in range(1, 40):
        keys = np.ascontiguousarray(ALL_KEYS[(step * 7) % 100 :: 9])
        found = []
        for table, ahead in zip(tables, sets, strict=True):
            pull = PendingPull(step, 0, keys, np.array([len(keys)], np.uint32))
            if table is tables[1]:
                ahead.ask_disk(pull)
            out = np.empty((len(keys), 3), np.float32)
            ahead.pull(pull, [out])
            ahead.push([(pull, [out])], step)
            ahead.evict(step)
            found.append(out.tobytes())
        assert found[0] == found[1]
    assert tables[0].from_disk_rows == tables[1].from_disk_rows > 0


def test_without_a_ring_threads_read(tmp_path: Path) -> None:
    """Where the kernel gives no io_uring: here since the process may open nothing more."""
    found = []
    for refused in (False, True):
        table = make_table(**arguments("adagrad", **{**DISK, "disk_folder": str(tmp_path)}))
        fill(table, 3000)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0 if refused else before[0], before[1]))
        try:
            rows = lookup(table, np.sort(mix(np.arange(3000, dtype=np.uint64))))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        found.append(rows.tobytes())
        if refused:
            assert len(os.listdir("/proc/self/fd")) == opened
        del table
    assert found[0] == found[1]


def test_rows_that_one_step_used_go_before_those_of_several() -> None:
    table = make_table(**arguments("adagrad", num_buckets=1, bucket_capacity=200, **DISK))
    keys = np.sort(mix(np.arange(2000, dtype=np.uint64)))
    often, once = keys[::20].copy(), np.delete(keys, np.s_[::20])
    parts = [often, often, *np.array_split(once, 38)]
    for step, part in enumerate(parts, 1):
        pull_at(table, part, step)
        table.evict(step)
    assert table.cold_rows == 1800
    pull_at(table, often, 41)
    assert table.from_disk_rows == 0
    pull_at(table, parts[5], 42)
    assert table.from_disk_rows == len(parts[5])


def test_an_index_takes_at_most_12_bytes_a_row() -> None:
    config = arguments("rowwise_adagrad", dim=4, num_buckets=16, bucket_capacity=256, **DISK)
    few, many = (
        make_table(**{**config, "disk_bytes": 1 << 26}),
        make_table(**{**config, "disk_bytes": 1 << 26}),
    )
    fill(few, 80_000)
    fill(many, 220_000)
    more = many.cold_rows - few.cold_rows
    assert more > 130_000
    assert (many.memory_bytes - few.memory_bytes) / more < 12


@pytest.mark.parametrize(
    ("dim", "counts", "alone", "copied"),
    [(4, (80_000, 220_000), 12, 12), (1024, (1000, 13_000), 13, 14), (4096, (1000, 8000), 22, 26)],
)
def test_rows_that_checkpoints_share_take_a_little_more(
    dim: int, counts: tuple[int, int], alone: float, copied: float
) -> None:
    """Wide rows of 4 to 16 KiB take more, as an extent has fewer of them."""
    config = arguments("sgd", dim=dim, num_buckets=8, bucket_capacity=4096 // dim + 16, **DISK)
    taken = []
    for shares in (False, True):
        table, sizes = make_table(**{**config, "disk_bytes": 1 << 28}), []
        for count in range(1, counts[1] // 100 + 1):
            pull_at(table, np.sort(mix(np.arange(100 * count - 100, 100 * count, dtype=np.uint64))), 1)
            table.evict(1)
            if 100 * count in counts:
                if shares:
                    table.begin_snapshot(True)
                    table.copy_buckets(0, 8, 1)
                    table.end_snapshot()
                    assert table.copied_rows()[1] > 0.8 * table.cold_rows
                sizes.append((table.cold_rows, table.memory_bytes))
        (few, before), (many, after) = sizes
        taken.append((after - before) / (many - few))
    assert taken[0] < alone
    assert taken[0] < taken[1] < copied


def test_the_file_has_at_most_three_times_its_rows() -> None:
    """Also after rows have come and gone many times."""
    table = make_table(**arguments("adagrad", num_buckets=2, bucket_capacity=400, dim=16, **DISK))
    random = np.random.default_rng(1)
    for step in range(1, 300):
        keys = np.sort(mix(np.unique(random.integers(0, 4000, 600).astype(np.uint64))))
        rows, slots, epoch = pull_at(table, keys, step)
        table.push(keys, slots, rows, step, epoch)
        table.evict(step)
    assert table.from_disk_rows > 50_000
    record = 16 + 16 * 4 * 2
    assert table.disk_bytes < 3.3 * table.cold_rows * record  # and the extents that are being filled


def test_gaps_are_closed_as_fast_as_they_come() -> None:
    """Extents of few rows, from which far more rows go in a step than those of a fixed number of extents."""
    table = make_table(**arguments("adagrad", num_buckets=256, bucket_capacity=16, dim=16, **DISK))
    random = np.random.default_rng(1)
    keys = np.sort(mix(np.arange(40_000, dtype=np.uint64)))
    for step in range(1, 120):
        pull_at(table, keys[np.sort(random.choice(len(keys), 5000, replace=False))], step)
        table.evict(step)
    assert table.from_disk_rows > 300_000
    extents = 256 * 4096  # that are being filled
    assert table.disk_bytes < 3.2 * table.cold_rows * (16 + 16 * 4 * 2) + extents


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"missing.*No such file"):
        make_table(**arguments(**{**DISK, "disk_folder": str(tmp_path / "missing")}))


def _file_in(folder: Path) -> int:
    """The descriptor of the only open file there."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(str(folder)):
                found.append(int(entry.name))
        except OSError:
            continue
    (descriptor,) = found
    return descriptor


def test_the_file_has_no_name(tmp_path: Path) -> None:
    table = make_table(**arguments(**{**DISK, "disk_folder": str(tmp_path)}))
    fill(table, 500)
    assert table.cold_rows > 400
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(_file_in(tmp_path)).st_nlink == 0


@pytest.mark.parametrize("what", ["a bit", "a record elsewhere", "cut off"])
def test_damage_on_disk_is_never_a_row(what: str, tmp_path: Path) -> None:
    config = arguments("sgd", num_buckets=1, dim=2, **{**DISK, "disk_folder": str(tmp_path)})
    table = make_table(**config)
    fill(table, 500)
    file, record = _file_in(tmp_path), 16 + 8
    if what == "a bit":
        byte = os.pread(file, 1, 5 * record + 17)
        os.pwrite(file, bytes([byte[0] ^ 4]), 5 * record + 17)
    elif what == "a record elsewhere":
        os.pwrite(file, os.pread(file, record, 3 * record), 5 * record)
    else:
        os.ftruncate(file, 4 * record)
    with pytest.raises(DiskError, match=r"not as it was written|shorter than what was written"):
        lookup(table, np.sort(mix(np.arange(500, dtype=np.uint64))))


@pytest.mark.parametrize(
    ("instead", "read", "write"),
    [
        ("/dev/full", "not as it was written", "can't write: No space left on device"),  # it reads as zeros
        ("/", "can't read: Is a directory", "can't write: Bad file descriptor"),
    ],
)
def test_calls_that_fail_say_so(instead: str, read: str, write: str, tmp_path: Path) -> None:
    """Its descriptor is another file's from a moment on: a pull fails; what is to go to disk stays."""
    for reads in (False, True):
        table = make_table(**arguments("sgd", **{**DISK, "disk_folder": str(tmp_path)}))
        fill(table, 1500)
        other = os.open(instead, os.O_RDONLY if instead == "/" else os.O_RDWR)
        os.dup2(other, _file_in(tmp_path))
        os.close(other)
        keys = np.sort(mix(np.arange(1500 * (not reads), 1500 * (2 - reads), dtype=np.uint64)))
        if reads:
            with pytest.raises(DiskError, match=read):
                pull_at(table, keys, 2)
        else:
            pull_at(table, keys, 2)
            table.evict(2)
            assert write in table.disk_problem
        del table


def test_what_it_takes_of_memory_is_told_before() -> None:
    from persia_hpc._native import TableConfig, table_bytes

    config = arguments("adagrad", dim=16, num_buckets=8, bucket_capacity=512)
    alone = table_bytes(TableConfig(**config), 4096)
    tiered = TableConfig(**config, disk_folder="/nowhere", disk_bytes=300 << 20)
    rows = (300 << 20) / (16 + 16 * 8)
    assert 10 * rows < table_bytes(tiered, 4096) - alone < 12.5 * rows
    lfu = {"eviction": "lfu", "disk_folder": "/nowhere", "full_disk_evicts": True}
    with pytest.raises(ValueError, match="full_disk_evicts: got true with eviction 'lfu'"):
        table_bytes(TableConfig(**config, **lfu), 1)


def test_no_keys_are_asked_for_in_vain() -> None:
    table = make_table(**arguments(**DISK))
    assert lookup(table, u64([])).shape == (0, 3)
    assert not lookup(table, ALL_KEYS[:5]).any()
    assert not table.cold_rows + table.disk_bytes + table.to_disk_rows + table.from_disk_rows
