"""Snapshots whose rows on disk are put into files that later ones share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .table_model import assert_same_rows
from .table_support import DISK, OPTIMIZERS, arguments, make_table
from .tier_support import IDS, Steps, copied_columns, fill, kinds, with_lfu

BUCKETS = 4
Rows = dict[str, np.ndarray]


class Files:
    """What is written of each file: its rows by bucket."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Rows]] = {}
        self.last = 0
        self.copied = self.known = 0  # rows

    def snapshot(self, steps: Steps, meanwhile: list[int], lost: set[int]) -> list[Rows]:
        """All rows of each bucket; steps go on in between. lost: of the files, by their rank."""
        steps.table.begin_snapshot(True)
        for i, number in enumerate(sorted(self.rows)):
            if i in lost:
                del self.rows[number]
        steps.table.keep_copies(sorted(self.rows))
        self.last += 1
        self.rows[self.last], merged = [], []
        for bucket, seeds in zip(range(BUCKETS), np.array_split(meanwhile, BUCKETS), strict=True):
            rows, decides, copied, places = steps.table.copy_buckets(bucket, bucket + 1, self.last)
            copied = copied_columns(steps.table, copied)
            assert (decides["counts"], places["counts"]) == ([len(rows["keys"])], [len(copied["keys"])])
            assert places["known"] == [len(places["files"])]
            self.rows[self.last].append(copied)
            self.copied += len(copied["keys"])
            self.known += len(places["files"])
            pieces = [rows, copied]
            for number in np.unique(places["files"]).tolist():
                at = places["numbers"][places["files"] == number]
                assert len(np.unique(at)) == len(at)
                pieces.append({k: v[at] for k, v in self.rows[number][bucket].items()})
            every = {k: np.concatenate([piece[k] for piece in pieces]) for k in rows}
            order = np.argsort(every["keys"])
            merged.append({k: v[order] for k, v in every.items()})
            for seed in seeds:
                steps.run(int(seed), 100.0)
        steps.table.end_snapshot()
        while steps.in_flight:
            steps.push()
        return merged


@settings(max_examples=120, deadline=None)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    kind=with_lfu | kinds,
    capacity=st.integers(1, 30),
    threads=st.integers(1, 2),
    bound=st.integers(0, 2),
    dim=st.sampled_from([3, 40]),
    turns=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**32 - 1), max_size=30),
            st.lists(st.integers(0, 2**32 - 1), max_size=6),
            st.sets(st.integers(0, 4), max_size=2),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_rows_in_shared_files_are_those_of_a_table_that_shares_none(
    optimizer: str,
    kind: dict[str, Any],
    capacity: int,
    threads: int,
    bound: int,
    dim: int,
    turns: list[tuple[list[int], list[int], set[int]]],
) -> None:
    """Of two tables with disk tiers; rows come and go, gaps are closed, and files get lost."""
    config = {"dim": dim, **kind, **DISK, "bucket_capacity": capacity, "threads": threads}
    config = arguments(optimizer, num_buckets=BUCKETS, **config)
    pair, files = [Steps(bound, ids=8 * IDS, **config) for _ in range(2)], Files()
    for before, meanwhile, lost in turns:
        for each in pair:
            for seed in before:
                each.run(seed, 150.0)
            while each.in_flight:
                each.push()
        got = files.snapshot(pair[0], meanwhile, lost)
        pair[1].table.begin_snapshot(True)
        expected = []
        for bucket, seeds in zip(range(BUCKETS), np.array_split(meanwhile, BUCKETS), strict=True):
            expected.append(pair[1].table.snapshot_buckets(bucket, bucket + 1)[0])
            for seed in seeds:
                pair[1].run(int(seed), 100.0)
        pair[1].table.end_snapshot()
        while pair[1].in_flight:
            pair[1].push()
        for mine, theirs in zip(got, expected, strict=True):
            assert_same_rows(mine, theirs)
    assert pair[0].seen == pair[1].seen
    assert pair[0].state() == pair[1].state()


def test_a_row_is_copied_once() -> None:
    """A second snapshot finds all rows of full extents in the first one's file, unless that is lost."""
    steps, files = Steps(0, **arguments("adagrad", num_buckets=BUCKETS, dim=16, **DISK)), Files()
    fill(steps.table, 20_000)
    first = files.snapshot(steps, [], set())
    rows = files.copied
    assert (files.known, steps.table.copied_rows()) == (0, {1: rows})
    assert 0.8 * steps.table.cold_rows < rows <= steps.table.cold_rows
    for mine, theirs in zip(files.snapshot(steps, [], set()), first, strict=True):
        assert_same_rows(mine, theirs)
    assert (files.copied, files.known) == (rows, rows)
    files.snapshot(steps, [], {0})
    assert (files.copied, files.known) == (2 * rows, rows)
    assert steps.table.copied_rows() == {3: rows}


def test_a_file_needs_a_number() -> None:
    table = make_table(**arguments(**DISK))
    table.begin_snapshot()
    with pytest.raises(ValueError, match="into: got 0"):
        table.copy_buckets(0, 1, 0)
    table.end_snapshot()
