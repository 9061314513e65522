"""Records that tables take from rings and write to rings do what the same arrays do in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull, TableSet, decode_rows, encode_rows
from persia_hpc.bench.memory_ring import MemoryRing
from persia_hpc.errors import PersiaError

from .table_support import arguments, export, make_table, u64

PULL, ROWS, PUSH = 1, 2, 3
DIMS = [3, 16]
GROUPS = [0, 1, 0]
KEYS = np.sort(np.random.default_rng(0).integers(0, 1 << 64, 40, dtype=np.uint64))
WIRES = ["fp32", "fp16", "bf16", "scaled_fp16"]


def make_set() -> tuple[TableSet, list[Any]]:
    tables = [make_table(**arguments("adagrad", dim=DIMS[g], bucket_capacity=50)) for g in GROUPS]
    return TableSet(tables, GROUPS, DIMS), tables


def draw_record(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    parts = [np.sort(generator.choice(KEYS, int(generator.integers(0, 30)), replace=False)) for _ in GROUPS]
    return np.concatenate(parts), np.array([len(part) for part in parts], np.uint32)


def sizes(counts: np.ndarray, wanted: np.ndarray | None) -> list[int]:
    """Plain NumPy: rows of each dim group that must travel."""
    owner = np.repeat(np.array(GROUPS), counts)
    return np.bincount(owner, weights=wanted, minlength=len(DIMS)).astype(int).tolist()


def read(ring: MemoryRing) -> tuple[tuple[int, ...], list[np.ndarray]]:
    record = ring.receiver.poll()
    assert record is not None
    arrays = [array.copy() for array in record.arrays]
    fields = record.kind, record.step, record.trainer, record.tag
    record.release()
    return fields, arrays


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(WIRES), st.sampled_from(WIRES), st.booleans())
def test_rings_carry_what_arrays_do(seed: int, rows: str, gradients: str, choose: bool) -> None:
    (ours, made), (plain, expected) = make_set(), make_set()
    requests, answers, pushes = (MemoryRing(1 << 16) for _ in range(3))
    generator = np.random.default_rng(seed)
    for step in range(1, 6):
        keys, counts = draw_record(generator)
        wanted = generator.integers(0, 2, len(keys)).astype(np.uint8) if choose and len(keys) else None
        arrays: list[Any] = [keys, counts] if wanted is None else [keys, counts, wanted]
        requests.sender.post(PULL, step=step, trainer=7, arrays=arrays)
        pull = requests.receiver.take(lambda ring: ours.take_pull(ring, PULL))
        assert pull is not None
        assert (pull.step, pull.trainer, len(pull), pull.worker) == (step, 7, len(keys), 0)
        # Overwriting the ring must not change the pull: it may wait for long.
        requests.receiver.ring.data[:] = 255
        for one, other in ((pull.keys, keys), (pull.counts, counts)):
            np.testing.assert_array_equal(one, other)
        assert (pull.wanted is None) == (wanted is None)
        sent = ours.answer(pull, answers.sender.ring, ROWS, step + 100, rows)
        assert sent == sum(sizes(counts, wanted))
        fields, found = read(answers)
        assert fields == (ROWS, step, 7, step + 100)
        reference = PendingPull(step, 7, keys, counts, 0, wanted)
        out = [
            encode_rows(np.zeros((n, dim), np.float32), rows)
            for n, dim in zip(sizes(counts, wanted), DIMS, strict=True)
        ]
        plain.pull(reference, out)
        for one, other in zip(found, out, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(pull.slots, reference.slots)
        np.testing.assert_array_equal(pull.epochs, reference.epochs)
        pushed = [
            encode_rows(generator.normal(size=(n, dim)).astype(np.float32), gradients)
            for n, dim in zip(sizes(counts, None), DIMS, strict=True)
        ]
        pushes.sender.post(PUSH, step=step, trainer=7, arrays=pushed)
        assert pushes.receiver.ring.peek(PULL) is None
        assert pushes.receiver.ring.peek(PUSH) == (step, 7)
        outcome = pushes.receiver.take(partial(ours.push_next, pull=pull))
        assert outcome == plain.push([(reference, pushed)], step)
        assert outcome == (len(keys), 0, 0, 0)
        assert pushes.receiver.poll() is None
    for one, other in zip(made, expected, strict=True):
        for mine, theirs in zip(export(one, 4), export(other, 4), strict=True):
            for a, b in zip(mine.values(), theirs.values(), strict=True):
                np.testing.assert_array_equal(a, b)
    for ring in (requests, answers, pushes):
        assert ring.receiver.counters.records == ring.sender.counters.records == 5
        assert ring.receiver.ring.released == ring.sender.ring.head


def test_a_ring_without_room_leaves_everything_as_it_was() -> None:
    ours, made = make_set()
    ring = MemoryRing(4096)
    keys, counts = np.concatenate([KEYS, KEYS, KEYS]), np.full(3, 40, np.uint32)
    pull = PendingPull(1, 0, keys, counts)
    assert ours.answer(pull, ring.sender.ring, ROWS, 0, "fp32") is None
    assert not ring.sender.ring.reserved
    assert [table.num_rows for table in made] == [0, 0, 0]
    assert len(pull.slots) == 0
    assert ours.answer(pull, MemoryRing(1 << 16).sender.ring, ROWS, 0, "fp32") == 120


def test_an_answer_that_fails_sends_nothing() -> None:
    ours, _ = make_set()
    ring = MemoryRing(1 << 16)
    pull = PendingPull(1, 0, KEYS[::-1].copy(), np.array([40, 0, 0], np.uint32))
    with pytest.raises(ValueError, match="ascending"):
        ours.answer(pull, ring.sender.ring, ROWS, 0, "fp32")
    assert not ring.sender.ring.reserved
    assert ring.receiver.poll() is None


def test_other_records_and_chunks_are_left_to_poll() -> None:
    ours, _ = make_set()
    ring = MemoryRing(4096)
    receiver = ring.receiver

    def take() -> PendingPull | None:
        return receiver.take(lambda consumer: ours.take_pull(consumer, PULL))

    assert take() is None
    ring.sender.post(PUSH, arrays=[np.zeros(1)])
    assert take() is None
    assert read(ring)[0][0] == PUSH
    keys, counts = u64(range(300)), np.array([300, 0, 0], np.uint32)
    ring.sender.post(PULL, arrays=[keys, counts])
    found = None
    while found is None:  # in chunks
        assert take() is None
        assert receiver.ring.peek(PULL) is None
        ring.sender.progress()
        found = receiver.poll()
    np.testing.assert_array_equal(found.arrays[0], keys)


ONE = np.zeros(1, np.uint64)
BAD_PULLS: list[tuple[list[Any], str]] = [
    ([ONE], "a pull has 1 arrays, expected 2 or 3"),
    ([ONE] * 4, "a pull has 4 arrays, expected 2 or 3"),
    ([ONE.astype(np.int64), np.zeros(3, np.uint32)], "array 0 of a pull is int64 .*expected uint64"),
    ([ONE, ONE], "array 1 of a pull is uint64 .*expected uint32"),
    ([ONE, np.zeros((1, 3), np.uint32)], r"array 1 of a pull is uint32 \[1, 3\], expected"),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_PULLS)
def test_a_record_that_is_no_pull_is_refused(arrays: list[Any], message: str) -> None:
    ours, _ = make_set()
    ring = MemoryRing(1 << 16)
    ring.sender.post(PULL, arrays=arrays)
    with pytest.raises(PersiaError, match=f"ring ring: entry 1: {message}"):
        ring.receiver.take(lambda consumer: ours.take_pull(consumer, PULL))


def test_gradients_that_fit_no_pull_are_refused_and_change_nothing() -> None:
    ours, made = make_set()
    counts = np.array([1, 2, 1], np.uint32)
    keys = np.concatenate([KEYS[:1], KEYS[:2], KEYS[:1]])
    pull = PendingPull(1, 0, keys, counts)
    ours.pull(pull, [np.zeros((2, 3), np.float32), np.zeros((2, 16), np.float32)])
    before = [export(table, 4) for table in made]
    good = [np.ones((2, 3), np.float32), np.ones((2, 16), np.float32)]
    for bad, message in (
        (good[:1], "a push has 1 arrays, expected 2"),
        (good[::-1], r"expected rows of dim 3, got float32 \[2, 16\]"),
        ([good[0][:1], good[1]], "rows of dim group 0: got 1, expected 2"),
        ([good[0], good[1].astype(np.float64)], r"expected rows of dim 16, got float64"),
    ):
        ring = MemoryRing(1 << 16)
        ring.sender.post(PUSH, step=1, arrays=bad)
        with pytest.raises(PersiaError, match=f"entry 1: .*{message}"):
            ring.receiver.take(lambda consumer: ours.push_next(consumer, pull))
    for table, rows in zip(made, before, strict=True):
        for mine, theirs in zip(export(table, 4), rows, strict=True):
            for a, b in zip(mine.values(), theirs.values(), strict=True):
                np.testing.assert_array_equal(a, b)


def test_gradients_that_are_not_there_whole_are_refused() -> None:
    ours, _ = make_set()
    ring = MemoryRing(4096)
    pull = PendingPull(1, 0, KEYS, np.array([0, 40, 0], np.uint32))
    ours.pull(pull, [np.zeros((0, 3), np.float32), np.zeros((40, 16), np.float32)])

    def take() -> object:
        return ring.receiver.take(lambda consumer: ours.push_next(consumer, pull))

    with pytest.raises(PersiaError, match="ring ring: entry 1 isn't there whole"):
        take()
    ring.sender.post(PUSH, step=1, arrays=[np.zeros((0, 3), np.float32), np.zeros((40, 16), np.float32)])
    assert ring.receiver.ring.peek(PUSH) is None, "it fits one entry: the test isn't what it is for"
    with pytest.raises(PersiaError, match="isn't there whole"):
        take()
    with pytest.raises(ValueError, match=r"records\[0\]: expected a PendingPull, got None"):
        ours.push([(None, [])], 1)  # type: ignore[list-item]


def test_rows_of_a_ring_survive_their_coding() -> None:
    """Says that the reference above compares rows, not zeros."""
    ours, _ = make_set()
    ring = MemoryRing(1 << 16)
    pull = PendingPull(1, 0, KEYS, np.array([0, 40, 0], np.uint32))
    assert ours.answer(pull, ring.sender.ring, ROWS, 0, "fp16") == 40
    rows = decode_rows(read(ring)[1][1], 16)
    assert len(np.unique(rows)) > 100
