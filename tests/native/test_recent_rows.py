"""What RecentRows says against a trainer that does as it is told: rings of rows, written and read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import RecentRows

GROUPS = [0, 0, 1]
# Some keys in all batches, some that want the same entry of an index, some that are the same in all tables.
KEYS = [*range(6), *(i << 40 for i in range(1, 5)), *(2**63 + i for i in range(3))]
TABLES = st.tuples(*(st.lists(st.sampled_from(KEYS), unique=True, max_size=8) for _ in GROUPS))
# Batches with steps between them that other workers prepare; None: everything is forgotten.
HISTORIES = st.lists(st.one_of(st.tuples(TABLES, st.integers(1, 3)), st.none()), max_size=25)


@settings(max_examples=300, deadline=None)
@given(history=HISTORIES, reuse=st.integers(1, 5))
def test_rows_are_where_they_should_be_and_no_older(history: list, reuse: int) -> None:
    recent = RecentRows(groups=GROUPS, reuse_steps=reuse)
    rings: dict[int, list] = {}  # of (table, key, step in which it travelled)
    step, forgotten = 0, 0
    for entry in history:
        if entry is None:
            recent.clear()
            forgotten = step
            continue
        tables, stride = entry
        step += stride
        keys = np.array([key for table in tables for key in table], np.uint64)
        offsets = np.cumsum([0, *map(len, tables)]).astype(np.uint32)
        wanted, places, where, ages = recent.find(keys, offsets, step=step)
        owner = np.repeat(np.arange(len(GROUPS)), np.diff(offsets.astype(int)))
        group_of = np.array(GROUPS)[owner] if len(owner) else owner
        for group, (begin, size) in enumerate(where.tolist()):
            if size != len(rings.get(group, [])):
                rings[group] = [None] * size
            here = [i for i in range(len(keys)) if group_of[i] == group and wanted[i]]
            for at, i in enumerate(here):
                rings[group][begin + at] = (owner[i], keys[i], step)
        seen = 0
        for i in range(len(keys)):
            table, key, since = rings[group_of[i]][places[i]]
            assert (table, key) == (owner[i], keys[i])
            age = step - since
            assert 0 <= age <= reuse
            assert age == 0 or since > forgotten
            assert (age == 0) == bool(wanted[i])
            seen |= 1 << age if age else 0
        assert ages == seen


def test_a_batch_that_comes_again_does_not_travel_until_it_is_too_old() -> None:
    recent = RecentRows(groups=[0], reuse_steps=2)
    keys = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    travelled = [
        int(recent.find(keys, np.array([0, 1000], np.uint32), step=step)[0].sum()) for step in range(1, 8)
    ]
    assert travelled[0] == travelled[3] == travelled[6] == 1000
    assert max(travelled[1:3] + travelled[4:6]) < 150  # those that want the same entry


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="reuse_steps: got 0, expected 1 to 31"):
        RecentRows(groups=[0], reuse_steps=0)
    with pytest.raises(ValueError, match="groups"):
        RecentRows(groups=[1, 0], reuse_steps=1)
    recent = RecentRows(groups=[0], reuse_steps=1)
    with pytest.raises(ValueError, match="table_offsets"):
        recent.find(np.zeros(2, np.uint64), np.array([0, 1], np.uint32), step=1)
    recent.find(np.zeros(1, np.uint64), np.array([0, 1], np.uint32), step=3)
    with pytest.raises(ValueError, match="step: got 3 after 3"):
        recent.find(np.zeros(1, np.uint64), np.array([0, 1], np.uint32), step=3)
