"""Gathering rows against NumPy's indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc._native import gather


@given(
    st.sampled_from(["u1", "f4", "u8", "i8"]),
    st.lists(st.integers(0, 14), max_size=2),
    st.integers(1, 60),
    st.integers(0, 80),
    st.integers(0, 2**32 - 1),
)
def test_rows_come_as_numpy_takes_them(dtype: str, tail: list[int], size: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 255, (size, *tail)).astype(dtype)
    rows = rng.integers(0, size, count)
    out = np.empty((count, *tail), dtype)
    gather(source, rows, out)
    assert np.array_equal(out, source[rows])


@given(st.integers(-3, 8), st.integers(0, 4))
def test_a_row_outside_is_an_error(row: int, at: int) -> None:
    rows = np.arange(5)
    rows[at] = row
    source, out = np.arange(6, dtype=np.uint64), np.zeros(5, np.uint64)
    if 0 <= row < 6:
        gather(source, rows, out)
        assert out[at] == row
    else:
        with pytest.raises(IndexError, match="outside of source's 6 rows"):
            gather(source, rows, out)


def read_only() -> np.ndarray:
    array = np.zeros((2, 2))
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("source", "rows", "out"),
    [
        (np.zeros((3, 2)), np.zeros(2, np.int64), np.zeros((2, 3))),
        (np.zeros((3, 2)), np.zeros(2, np.int64), np.zeros((2, 2), np.float32)),
        (np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros((2, 2))),
        (np.zeros((3, 4))[:, ::2], np.zeros(2, np.int64), np.zeros((2, 2))),
        (np.zeros((3, 2)), np.zeros(2, np.int32), np.zeros((2, 2))),
        (np.zeros((3, 2)), np.zeros(2, np.int64), np.zeros(2)),
        (np.zeros((3, 2)), np.zeros(2, np.int64), read_only()),
    ],
)
def test_arrays_that_do_not_fit_are_refused(source: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        gather(source, rows, out)
