"""A record of many tables does what a loop over its tables does, and a bad one changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull, Table, TableSet, encode_rows

from .table_support import KEYS, OPTIMIZERS, arguments, export, make_table, u64

WIRES = {  # dtype, and words behind a row's elements
    "fp32": (np.float32, 0),
    "fp16": (np.float16, 0),
    "bf16": (np.uint16, 0),
    "scaled_fp16": (np.uint16, 2),
}
POOL = np.sort(u64(KEYS))


class Loop:
    """Is the reference: Python that cuts a record into the parts of its tables and calls each."""

    def __init__(self, tables: list[Table | None], groups: list[int], dims: list[int]) -> None:
        self.tables, self.groups, self.dims = tables, groups, dims

    def parts(
        self, keys: np.ndarray, counts: np.ndarray, blocks: Any, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, Table, slice, np.ndarray]]:
        begin, at = 0, [0] * len(self.dims)
        for t, count in enumerate(counts.tolist()):
            part, group = slice(begin, begin + count), self.groups[t]
            rows = count if wanted is None else int(wanted[part].sum())
            table = self.tables[t]
            if table is not None and count:
                yield t, table, part, blocks[group][at[group] : at[group] + rows]
            begin, at[group] = begin + count, at[group] + rows

    def row_counts(self, counts: np.ndarray, wanted: np.ndarray | None = None) -> list[int]:
        rows, begin = [0] * len(self.dims), 0
        for t, count in enumerate(counts.tolist()):
            rows[self.groups[t]] += count if wanted is None else int(wanted[begin : begin + count].sum())
            begin += count
        return rows

    def pull(self, keys: Any, counts: Any, step: int, out: Any, slots: Any, wanted: Any = None) -> np.ndarray:
        epochs = np.zeros(len(counts), np.uint32)
        for t, table, part, rows in self.parts(keys, counts, out, wanted):
            chosen = None if wanted is None else wanted[part]
            epochs[t] = table.pull(keys[part], step, rows, slots[part], chosen)
        return epochs

    def lookup(self, keys: Any, counts: Any, out: Any) -> None:
        for _, table, part, rows in self.parts(keys, counts, out):
            table.lookup(keys[part], rows)

    def push(self, records: Any, step: int) -> tuple[int, ...]:
        batches: dict[int, list[Any]] = {}
        for keys, counts, slots, gradients, epochs in records:
            for t, _, part, rows in self.parts(keys, counts, gradients):
                batches.setdefault(t, []).append((keys[part], slots[part], rows, int(epochs[t])))
        outcomes = [(0, 0, 0, 0)]
        for t, each in batches.items():
            table = self.tables[t]
            assert table is not None
            if len(records) == 1:
                (batch,) = each
                outcomes.append(table.push(*batch[:3], step, batch[3]))
            else:
                outcomes.append(table.push_step(each, step))
        return tuple(np.sum(outcomes, axis=0).tolist())

    def evict(self, step: int) -> int:
        return sum(table.evict(step) for table in self.tables if table is not None)

    def set_lr(self, rates: np.ndarray) -> None:
        for table, lr in zip(self.tables, rates.tolist(), strict=True):
            if table is not None:
                table.set_lr(lr)


@st.composite
def configs(draw: Any) -> dict[str, Any] | None:
    if draw(st.integers(0, 5)) == 0:
        return None  # the server has no buckets of it
    lru = draw(st.booleans())
    return arguments(
        draw(st.sampled_from(sorted(OPTIMIZERS))),
        dim=draw(st.sampled_from([1, 3, 16])),
        bucket_capacity=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 99)),
        threads=draw(st.sampled_from([1, 1, 3])),
        storage=draw(st.sampled_from(["fp32", "fp32", "bf16"])),
        eviction="lru" if lru else "lfu",
        ttl=draw(st.sampled_from([0, 2])) if lru else 0,
        admit_after=draw(st.sampled_from([1, 1, 2])),
    )


def both(tables: list[dict[str, Any] | None]) -> tuple[Loop, TableSet, list[Table | None]]:
    dims = sorted({3 if each is None else each["dim"] for each in tables})
    groups = [dims.index(3 if each is None else each["dim"]) for each in tables]
    first, second = ([each and make_table(**each) for each in tables] for _ in range(2))
    return Loop(first, groups, dims), TableSet(second, groups, dims), second


def record(loop: Loop, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    parts = [
        POOL[np.sort(generator.choice(len(POOL), int(generator.integers(0, 9)), replace=False))]
        if table is not None
        else POOL[:0]
        for table in loop.tables
    ]
    return np.concatenate(parts), np.array([len(part) for part in parts], np.uint32)


def blocks(loop: Loop, rows: list[int], wire: str) -> list[np.ndarray]:
    dtype, extra = WIRES[wire]
    return [np.zeros((n, dim + extra), dtype) for n, dim in zip(rows, loop.dims, strict=True)]


def assert_same(ours: Any, expected: Any) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@settings(max_examples=150, deadline=None)
@given(st.lists(configs(), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from(sorted(WIRES)))
def test_records_of_many_tables_are_a_loop_over_tables(tables: Any, seed: int, wire: str) -> None:
    """Pulls of several trainers, gradients that come steps later, evictions in between, look-ups."""
    loop, ours, made = both(tables)
    generator = np.random.default_rng(seed)
    in_flight: list[list[Any]] = []
    for step in range(1, 7):
        pulled = []
        for _ in range(int(generator.integers(1, 4))):
            keys, counts = record(loop, generator)
            wanted = generator.integers(0, 2, len(keys)).astype(np.uint8) if generator.integers(2) else None
            rows = loop.row_counts(counts, wanted)
            assert ours.row_counts(counts, wanted) == rows
            expected, out = (blocks(loop, rows, wire) for _ in range(2))
            slots = np.full(len(keys), 7, np.uint32)
            epochs = loop.pull(keys, counts, step, expected, slots, wanted)
            pull = PendingPull(step, 0, keys, counts, 0, wanted)
            ours.pull(pull, out)
            assert_same([*out, pull.slots, pull.epochs], [*expected, slots, epochs])
            gradients = [
                encode_rows(generator.normal(size=(n, dim)).astype(np.float32), wire)
                for n, dim in zip(loop.row_counts(counts), loop.dims, strict=True)
            ]
            if wire == "fp32" and generator.integers(3) == 0 and gradients[0].size:
                gradients[0][0, 0] = np.nan
            pulled.append(((keys, counts, slots, gradients, epochs), (pull, gradients)))
        in_flight.append([step, pulled])
        if generator.integers(2):
            at, records = in_flight.pop(int(generator.integers(len(in_flight))))
            rates = generator.uniform(0, 0.1, len(tables))
            loop.set_lr(rates)
            ours.set_lr(rates)
            for together in [records] if generator.integers(2) else [[each] for each in records]:
                outcome = ours.push([mine for _, mine in together], at)
                assert outcome == loop.push([theirs for theirs, _ in together], at)
                assert sum(outcome) == sum(len(pull) for _, (pull, _) in together)
        if generator.integers(2):
            assert ours.evict(step) == loop.evict(step)
        keys, counts = record(loop, generator)
        out, expected = (blocks(loop, loop.row_counts(counts), wire) for _ in range(2))
        ours.lookup(keys, counts, out)
        loop.lookup(keys, counts, expected)
        assert_same(out, expected)
    for one, other in zip(made, loop.tables, strict=True):
        if one is not None and other is not None:
            assert one.num_rows == other.num_rows
            for ours_rows, rows in zip(export(one, 4), export(other, 4), strict=True):
                assert_same(ours_rows.values(), rows.values())


# ---- what is refused

TWO = [arguments("sgd"), arguments("sgd", num_buckets=4, first_bucket=2, end_bucket=4), None]
LOW, HIGH = u64([1, 5]), u64([2**63, 2**64 - 1])


def arrays() -> dict[str, Any]:
    return {
        "keys": np.concatenate([LOW, HIGH]),
        "counts": np.array([2, 2, 0], np.uint32),
        "out": [np.zeros((4, 3), np.float32)],
    }


BAD_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"counts": np.array([2, 1, 0], np.uint32)}, "keys.*got 4, expected 3"),
    ({"counts": np.array([2, 2], np.uint32)}, "counts: got 2, expected 3"),
    ({"counts": np.array([2, 2, 0], np.int64)}, "counts: .*uint32"),
    ({"counts": np.array([2, 0, 2], np.uint32)}, r"counts\[2\] = 2.*no buckets of that table"),
    ({"keys": np.concatenate([LOW, LOW])}, "table 1: keys.* of bucket 0"),
    ({"keys": np.concatenate([HIGH[::-1], HIGH])}, r"table 0: keys\[1\].*ascending"),
    ({"keys": np.zeros(4, np.int64)}, "keys: .*uint64"),
    ({"out": []}, "got 0 arrays, expected 1"),
    ({"out": [np.zeros((3, 3), np.float32)]}, "rows of dim group 0: got 3, expected 4"),
    ({"out": [np.zeros((4, 2), np.float32)]}, r"out\[0\]: .*\[U, 3\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS)
@pytest.mark.parametrize("call", ["pull", "lookup", "push"])
def test_a_malformed_record_changes_nothing(call: str, change: dict[str, Any], message: str) -> None:
    """What is wrong with its last table must be seen before the first one is touched."""
    _, ours, made = both(TWO)
    good = arrays()
    pull = PendingPull(1, 0, good["keys"], good["counts"])
    ours.pull(pull, good["out"])

    def contents() -> tuple[Any, int]:
        first, second, _ = made
        assert first is not None
        assert second is not None
        return export(first, 4), second.num_rows

    before = contents()
    bad = {**good, **change}
    keys, counts, out = bad["keys"], bad["counts"], bad["out"]
    calls = {
        "pull": lambda: ours.pull(PendingPull(2, 0, keys, counts), out),
        "push": lambda: ours.push([(pull, out)], 1),
        "lookup": lambda: ours.lookup(keys, counts, out),
    }
    if call == "push" and "out" not in change:
        return
    if call == "lookup" and len(counts) == 2:
        message = r"counts: .*\[3\]"
    with pytest.raises(ValueError, match=message.replace("out", "gradients") if call == "push" else message):
        calls[call]()
    after = contents()
    for one, other in zip(before[0], after[0], strict=True):
        assert_same(one.values(), other.values())
    assert before[1] == after[1]


def test_other_bad_arguments_are_refused() -> None:
    _, ours, _ = both(TWO)
    good = arrays()
    keys, counts, out = good["keys"], good["counts"], good["out"]
    with pytest.raises(ValueError, match="wanted"):
        ours.pull(PendingPull(1, 0, keys, counts, 0, np.ones(3, np.uint8)), out)
    with pytest.raises(ValueError, match="wanted"):
        ours.row_counts(counts, np.ones(0, np.uint8))
    with pytest.raises(ValueError, match="step: got 4294967296"):
        ours.pull(PendingPull(1 << 32, 0, keys, counts), out)
    pull, bad = (PendingPull(1, 0, keys, counts) for _ in range(2))
    rows = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="slots: got 0, expected 4"):
        ours.push([(pull, [rows])], 1)  # it was never answered
    for each in (pull, bad):
        ours.pull(each, out)
    bad.slots[3] = 1000
    with pytest.raises(ValueError, match=r"table 1: slots\[1\] = 1000 was never given"):
        ours.push([(pull, [rows]), (bad, [rows])], 1)
    after = np.empty((4, 3), np.float32)
    ours.lookup(keys, counts, [after])
    np.testing.assert_array_equal(after, out[0])
    for wrong in ([0.1, np.nan, 0.1], [0.1, -1.0, 0.1]):
        with pytest.raises(ValueError, match=r"rates\[1\]"):
            ours.set_lr(np.array(wrong))
    with pytest.raises(ValueError, match="rates"):
        ours.set_lr(np.array([0.1]))
    table = make_table(**arguments("sgd"))
    with pytest.raises(ValueError, match=r"groups\[0\] = 1, but there are 1"):
        TableSet([table], [1], [3])
    with pytest.raises(ValueError, match="dim of table 0: got 3, expected 4"):
        TableSet([table], [0], [4])
    with pytest.raises(ValueError, match="dim groups of tables: got 0, expected 1"):
        TableSet([table], [], [3])
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        TableSet([table], [0], [3], threads=0)


def test_a_thread_may_copy_rows_while_records_come() -> None:
    """As a checkpoint does: its snapshot is of the mark, whatever comes in between."""
    configs = [arguments("sgd", num_buckets=64, bucket_capacity=1000, seed=i) for i in range(3)]
    _, ours, made = both(configs)
    keys = np.arange(64, dtype=np.uint64) << np.uint64(58)
    record, counts = np.tile(keys, 3), np.full(3, 64, np.uint32)
    out = np.empty((192, 3), np.float32)
    pull = PendingPull(1, 0, record, counts)
    ours.pull(pull, [out])
    marked = out.copy()
    for table in made:
        assert table is not None
        table.begin_snapshot(True)
    copied: list[np.ndarray] = []

    def copy() -> None:
        for table in made:
            assert table is not None
            copied.append(table.snapshot_buckets(0, 64)[0]["rows"])
            table.end_snapshot()

    thread = threading.Thread(target=copy)
    thread.start()
    for step in range(1, 200):
        ours.push([(pull, [np.ones_like(out)])], step)
    thread.join()
    np.testing.assert_array_equal(np.concatenate(copied), marked)
