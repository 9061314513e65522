"""Counts of ids against `collections.Counter`."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc import _native

ids = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ids, st.integers(0, 3)), max_size=6), ids, st.integers(0, 2**64 - 1))
def test_equals_the_reference(parts, asked, other) -> None:
    counter, expected = _native.IdCounter(), Counter()
    for values, times in parts:
        array = np.asarray(values, np.uint64)
        counter.add(array, np.full(len(array), times, np.uint64)) if times else counter.add(array)
        expected.update({value: count * max(times, 1) for value, count in Counter(values).items()})
    found, counts = counter.items()
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == expected
    assert len(counter) == len(expected)
    replaced = counter.replace_unknown(np.asarray(asked, np.uint64), other=other)
    assert replaced.tolist() == [value if value in expected else other for value in asked]


def test_many_ids_in_the_order_of_another_counter() -> None:
    """A hash table's own order can make it slow to fill another: minutes instead of milliseconds."""
    first, second = _native.IdCounter(), _native.IdCounter()
    first.add(np.random.default_rng(1).integers(0, 2**40, 1_000_000).astype(np.uint64))
    found, counts = first.items()
    start = time.process_time()
    for begin in range(0, len(found), 1000):
        second.add(found[begin : begin + 1000], counts[begin : begin + 1000])
    assert time.process_time() - start < 10
    again, sums = second.items()
    assert np.array_equal(np.sort(again), np.sort(found))
    assert sums.sum() == 1_000_000


def test_a_count_of_zero_is_refused() -> None:
    counter = _native.IdCounter()
    with pytest.raises(ValueError, match="expected 1 or more"):
        counter.add(np.ones(2, np.uint64), np.asarray([1, 0], np.uint64))
    with pytest.raises(ValueError, match=r"counts: expected .* shape \[2\]"):
        counter.add(np.ones(2, np.uint64), np.ones(3, np.uint64))
    assert len(counter) == 0
