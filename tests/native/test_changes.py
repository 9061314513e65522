"""Changes: a follower that takes them has, after each step, the rows that look-ups of the table give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import ServedTable, Table, encode_served

from .table_support import DISK, KEYS, arguments, lookup, make_table, pull_at, u64

steps_of_keys = st.lists(
    st.lists(st.sampled_from(KEYS), max_size=12, unique=True).map(sorted), min_size=1, max_size=12
)
kinds = st.sampled_from(
    [
        *({}, {"eviction": "lfu"}, {"admit_after": 2}, {"storage": "bf16"}, {"threads": 2}, {"ttl": 2}),
        *(DISK, {**DISK, "ttl": 2}),
    ]
)


def step(table: Table, keys: list[int], number: int) -> None:
    ordered = sorted(keys)
    _, slots, epoch = pull_at(table, ordered, number)
    gradients = np.random.default_rng(number).normal(size=(len(keys), 3)).astype(np.float32)
    table.push(u64(ordered), slots, gradients, number, epoch)
    table.evict(number)


def taken(table: Table, rows: str = "fp32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table.mark_changes(rows)
    return table.take_changes()


def rows_of(table: Table | ServedTable) -> np.ndarray:
    out = np.empty((len(KEYS), 3), np.float32)
    table.lookup(u64(sorted(KEYS)), out)
    return out


@settings(max_examples=150, deadline=None)
@given(steps_of_keys, steps_of_keys, kinds, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_a_follower_has_the_tables_rows(before, after, kind, taken_at, lost_at) -> None:
    """Some takes are lost, and what was in them comes with the next one."""
    table = make_table(**arguments(**kind))
    for number, keys in enumerate(before, 1):
        step(table, keys, number)
    table.begin_changes()
    follower = ServedTable("fp32", 3)
    for bucket in range(4):
        rows = table.export_bucket(bucket)
        follower.add_changes(rows["keys"], rows["rows"].view(np.uint8).reshape(-1, 12), u64([]))
    for at, keys in enumerate(after):
        step(table, keys, len(before) + 1 + at)
        if at not in taken_at and at + 1 < len(after):
            continue
        keys_, rows_, removed = taken(table)
        if at in lost_at:
            table.return_changes(keys_, removed)
            keys_, rows_, removed = taken(table)
        follower.add_changes(keys_, rows_, removed)
        if "ttl" not in kind:  # rows past it go when they are swept away
            np.testing.assert_array_equal(rows_of(follower), rows_of(table))
    if "ttl" in kind:
        for number in range(100, 170):  # a sweep sees every bucket
            table.evict(number)
        follower.add_changes(*taken(table))
        np.testing.assert_array_equal(rows_of(follower), rows_of(table))


@settings(max_examples=150, deadline=None)
@given(steps_of_keys, st.lists(st.integers(0, 2), min_size=1, max_size=5), kinds)
def test_changes_are_as_they_were_at_the_mark(steps, taken_after, kind) -> None:
    """Whatever steps and imports come before they are taken; what nobody takes is in the next list."""
    table, follower = make_table(**arguments(**kind)), ServedTable("fp32", 3)
    table.begin_changes()
    number = 0
    for later in taken_after:
        for keys in steps:
            step(table, keys, number := number + 1)
        table.mark_changes("fp32")
        expected = rows_of(table)
        for at, keys in enumerate((steps * 2)[: 4 * later]):
            step(table, keys, number := number + 1)
            if at == 2 and len(rows := table.export_bucket(1)["keys"]):
                changed = {**table.export_bucket(1), "rows": np.full((len(rows), 3), number, np.float32)}
                table.import_rows(changed)
        if later == 1:  # nobody takes them
            continue
        follower.add_changes(*table.take_changes())
        if "ttl" not in kind:
            np.testing.assert_array_equal(rows_of(follower), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dim", [3, 8, 16, 17])
@pytest.mark.parametrize("storage", ["fp32", "fp16", "bf16"])
def test_pieces_are_of_the_mark_whatever_comes_between(storage: str, dim: int, threads: int) -> None:
    """More rows than are copied at a time; steps between pieces change some."""
    rng = np.random.default_rng(dim)
    keys = np.sort(rng.integers(0, 2**64, 9000, np.uint64))
    table = make_table(
        **arguments("sgd", dim=dim, storage=storage, num_buckets=8, bucket_capacity=5000, threads=threads)
    )

    def push(some: np.ndarray, number: int) -> None:
        _, slots, epoch = pull_at(table, some, number)
        table.push(some, slots, rng.normal(size=(len(some), dim)).astype(np.float32), number, epoch)
        table.evict(number)

    table.begin_changes()
    push(keys, 1)
    push(keys[::3].copy(), 2)
    for name in ("fp32", "fp16", "bf16", "int8"):
        table.mark_changes(name)
        expected = encode_served(lookup(table, keys), name)
        found: dict[int, bytes] = {}
        pieces = 0
        while len((piece := table.take_changes(1))[0]):
            assert not found.keys() & set(piece[0].tolist()), "once"
            found.update(zip(piece[0].tolist(), map(bytes, piece[1]), strict=True))
            pieces += 1
            push(np.sort(rng.choice(keys, 700, replace=False)), 2 + pieces)
        assert pieces > 1
        assert found == dict(zip(keys.tolist(), map(bytes, expected), strict=True))
        push(keys, 100)


def test_a_row_without_an_update_is_none_and_goes_from_a_base_that_may_have_it() -> None:
    table = make_table(**arguments())
    table.begin_changes()
    pull_at(table, KEYS[:2], 1)  # a base is made meanwhile
    for removed in (KEYS[:2], []):
        found = taken(table)
        assert found[0].size == 0
        assert sorted(found[2].tolist()) == sorted(removed)
        pull_at(table, sorted(KEYS[2:4]), 1)


def test_only_what_has_changed_is_given_and_once() -> None:
    table = make_table(**arguments(bucket_capacity=8))
    step(table, KEYS[:6], 1)
    table.begin_changes()
    step(table, KEYS[2:4], 2)
    keys, rows, removed = taken(table)
    assert sorted(keys.tolist()) == sorted(KEYS[2:4])
    assert rows.shape == (2, 12)
    assert removed.size == 0
    assert taken(table)[0].size == 0


def test_without_begin_nothing_is_noted() -> None:
    table = make_table(**arguments())
    step(table, KEYS[:3], 1)
    assert taken(table, "int8")[0].size == 0


def test_refuses_an_unknown_format() -> None:
    with pytest.raises(ValueError, match="rows: got 'fp8', expected fp32, fp16, bf16 or int8"):
        make_table(**arguments()).mark_changes("fp8")
