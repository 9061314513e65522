"""Which gradients come first, and in which parts: all that must, whoever is asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import PendingPull
from persia_hpc.parameter_server.first import MOST_PARTS, FirstPushes, Share, recurring

KEYS = st.lists(
    st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1)), unique=True, max_size=30),
    min_size=3, max_size=3,
)  # fmt: skip


def pull_of(step: int, trainer: int, of_tables: list[list[int]]) -> PendingPull:
    keys = np.array([key for keys in of_tables for key in keys], np.uint64)
    return PendingPull(step, trainer, keys, np.array([len(keys) for keys in of_tables], np.uint32))


def rows_of(pull: PendingPull) -> list[tuple[int, int]]:
    tables = np.repeat(np.arange(len(pull.counts)), pull.counts)
    return list(zip(tables.tolist(), pull.keys.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=3), st.lists(KEYS, min_size=1, max_size=3),
       st.sampled_from([1.0, 3.0, float("inf")]))  # fmt: skip
def test_a_row_that_recurs_is_wanted_first_and_in_the_part_of_its_key(
    now: list[list[list[int]]], then: list[list[list[int]]], most_rows: float
) -> None:
    pulls = [pull_of(1, trainer, keys) for trainer, keys in enumerate(now)]
    later = [pull_of(2, trainer, keys) for trainer, keys in enumerate(then)]
    again = {row for pull in later for row in rows_of(pull)}
    wishes = FirstPushes().want(pulls, later, most_rows)
    (num_parts,) = {len(wish.places) for wish in wishes}
    assert 1 <= num_parts <= MOST_PARTS
    for wish, pull in zip(wishes, pulls, strict=True):
        assert wish.pull is pull
        rows, places = rows_of(pull), np.concatenate(wish.places)
        assert len(set(places.tolist())) == len(places)
        assert again & set(rows) <= {rows[place] for place in places}
        for number, part in enumerate(wish.places):
            assert part.tolist() == sorted(part.tolist())
            assert Share(number, num_parts).has(pull.keys)[part].all()
        message = wish.message()
        assert message.counts.tolist() == [len(part) for part in wish.places]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.integers(1, MOST_PARTS))
def test_each_key_is_in_one_part(keys: list[int], num_parts: int) -> None:
    found = [Share(number, num_parts).has(np.array(keys, np.uint64)) for number in range(num_parts)]
    assert np.array_equal(np.sum(found, axis=0), np.ones(len(keys)))


def test_few_rows_are_wanted_that_dont_recur() -> None:
    tables = [list(range(2000)) for _ in range(4)]
    other = [list(range(5000, 7000)) for _ in range(4)]
    (wanted,) = recurring([pull_of(1, 0, tables)], [pull_of(2, 0, other)])
    assert wanted.mean() < 0.03


def test_parts_are_of_about_the_size_that_was_asked_for() -> None:
    tables = [list(range(1000)), [], list(range(40, 640))]
    pulls = [pull_of(1, 0, tables)]
    (wish,) = FirstPushes().want(pulls, [pull_of(2, 0, tables)], 400.0)
    sizes = [len(part) for part in wish.places]
    assert len(sizes) == 4
    assert sum(sizes) == 1600
    assert max(sizes) < 500
