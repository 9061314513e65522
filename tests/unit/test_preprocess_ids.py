"""Ids of columns of text, their counts, and reserved ids."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import split_lists, to_ids
from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.ids import IdCounts, string_ids
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, hash_strings


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=4)))
def test_hashing_distinct_values_equals_hashing_all(words):
    assert string_ids(pl.Series(words, dtype=pl.String)).tolist() == hash_strings(words).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=6), st.integers(1, 4))
def test_counts_by_first_use(blocks, min_count):
    counts = IdCounts()
    for block in blocks:
        counts.add(np.asarray(block, np.uint64), pl.Series([f"v{i}" for i in block], dtype=pl.String))
    flat = [i for block in blocks for i in block]
    expected = [(i, flat.count(i), f"v{i}") for i in dict.fromkeys(flat) if flat.count(i) >= min_count]
    assert counts.frame(min_count).select("id", "count", "value").rows() == expected


def ids_of(values, kind="integer"):
    source = Frame(pl.DataFrame({"x": values}), "file")
    return to_ids(source.frame["x"], kind, Place(source, "x")).tolist()


def test_integers_stay_as_they_are():
    assert ids_of(["7", None, "-1", str(2**64 - 1)]) == [7, MISSING_ID, 2**64 - 1, 2**64 - 1]
    assert ids_of([1.0, None, 3.0]) == [1, MISSING_ID, 3]
    assert ids_of(pl.Series([2**64 - 3], dtype=pl.UInt64)) == [2**64 - 3]


@pytest.mark.parametrize("bad", ["x", "1.5", str(2**64), str(RARE_ID), str(-(2**63))])
def test_other_integers_are_refused(bad):
    with pytest.raises(UserError, match=r"file, row 2: x: got '"):
        ids_of(["1", bad])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from(["", "a", "bc"]), max_size=4))))
def test_split_lists(rows):
    column = pl.Series([None if row is None else "|".join(row) for row in rows], dtype=pl.String)
    parts, lengths = split_lists(column, "|")
    kept = [[word for word in row or [] if word] for row in rows]
    assert parts.to_list() == [word for row in kept for word in row]
    assert lengths.tolist() == [len(row) for row in kept]
