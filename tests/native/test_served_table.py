"""Served tables against a dictionary: parts, changes on top of them, keys that came and went."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import ServedTable, encode_served, lookup_served, make_cells

from .table_support import KEYS, u64

DIM = 3
keys_of = st.lists(st.one_of(st.sampled_from(KEYS), st.integers(0, 2**64 - 1)), max_size=30, unique=True)


def add_part(table: ServedTable, rows: dict[int, np.ndarray]) -> None:
    keys = sorted(rows)
    cells, shift = make_cells(u64(keys))
    values = np.array([rows[key] for key in keys], np.float32).reshape(-1, DIM)
    table.add_part(u64(keys), cells, shift, encode_served(values, "fp32"))


def random_rows(keys: list[int], seed: int) -> dict[int, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
    return dict(zip(keys, values, strict=True))


@settings(max_examples=200, deadline=None)
@given(keys_of, st.lists(st.tuples(keys_of, keys_of), max_size=4), st.integers(1, 3), st.data())
def test_answers_like_a_dictionary(base, changes, num_parts, data) -> None:
    expected = random_rows(base, 0)
    table = ServedTable("fp32", DIM)
    bounds = [0, *sorted(data.draw(st.integers(0, len(base))) for _ in range(num_parts - 1)), len(base)]
    ordered = sorted(base)
    for begin, end in itertools.pairwise(bounds):
        add_part(table, {key: expected[key] for key in ordered[begin:end]})
    for number, (changed, removed) in enumerate(changes, 1):
        rows = random_rows(changed, number)
        for key in removed:
            expected.pop(key, None)
        expected |= rows
        values = np.array(list(rows.values()), np.float32).reshape(-1, DIM)
        table.add_changes(u64(changed), encode_served(values, "fp32"), u64(removed))
    asked = [*KEYS, *base, *(key for pair in changes for keys in pair for key in keys)]
    out = np.empty((len(asked), DIM), np.float32)
    table.lookup(u64(asked), out)
    zeros = np.zeros(DIM, np.float32)
    np.testing.assert_array_equal(out, [expected.get(key, zeros) for key in asked])
    keys = table.keys()
    assert keys.tolist() == sorted(expected)
    copied = np.empty((len(keys), 4 * DIM), np.uint8)
    table.copy(keys, copied)
    np.testing.assert_array_equal(
        copied.view(np.float32), np.array([expected[int(k)] for k in keys], np.float32).reshape(-1, DIM)
    )


def test_many_keys_are_all_found() -> None:
    keys = np.sort(np.random.default_rng(1).integers(0, 2**64, 200_000, dtype=np.uint64))
    rows = np.arange(len(keys) * DIM, dtype=np.float32).reshape(-1, DIM)
    table = ServedTable("fp32", DIM)
    cells, shift = make_cells(keys)
    assert len(keys) / 4 <= len(cells) <= len(keys)
    table.add_part(keys, cells, shift, encode_served(rows, "fp32"))
    order = np.random.default_rng(2).permutation(len(keys))
    out = np.empty_like(rows)
    table.lookup(keys[order], out)
    np.testing.assert_array_equal(out, rows[order])


def test_looks_up_several_tables_at_once() -> None:
    tables = [ServedTable("fp32", dim) for dim in (2, 3, 2)]
    for number, table in enumerate(tables):
        dim = table.row_bytes // 4
        rows = np.full((4, dim), number + 1, np.float32)
        table.add_changes(u64(range(4)), encode_served(rows, "fp32"), u64([]))
    out = [np.empty((5, 2), np.float32), np.empty((1, 3), np.float32)]
    lookup_served(tables, u64([0, 1, 2, 3, 0, 9]), np.array([3, 1, 2], np.uint32), [0, 1, 0], out)
    assert out[0][:, 0].tolist() == [1, 1, 1, 3, 0]
    assert out[1].tolist() == [[2, 2, 2]]


def test_refuses_what_does_not_fit() -> None:
    table = ServedTable("fp32", DIM)
    rows = encode_served(np.zeros((2, DIM), np.float32), "fp32")
    for cells in ([0, 1], [0, 2, 1], [1, 2], [0, 1, 2, 2, 2]):
        with pytest.raises(ValueError, match="cells: they don't fit the keys"):
            table.add_part(u64([1, 1 << 60]), np.array(cells, np.uint32), 60, rows)
    with pytest.raises(ValueError, match="keys: expected ascending keys"):
        make_cells(u64([2, 1]))
    add_part(table, random_rows([1, 9], 0))
    with pytest.raises(ValueError, match="they overlap"):
        add_part(table, random_rows([5], 0))
    with pytest.raises(ValueError, match=r"keys\[0\] = 7 isn't there"):
        table.copy(u64([7]), np.empty((1, 12), np.uint8))
    with pytest.raises(ValueError, match="they add up to 2, expected 1"):
        lookup_served([table], u64([1]), np.array([2], np.uint32), [0], [np.empty((2, DIM), np.float32)])
