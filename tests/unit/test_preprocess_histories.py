"""Histories: what a loop over each user's sorted events finds."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.preprocess.histories import Timeline

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40)


def by_user(events: list[tuple[int, int]]) -> dict[int, list[int]]:
    """Numbers of the events of each user, in order of time."""
    found: dict[int, list[int]] = {}
    for number in sorted(range(len(events)), key=lambda i: events[i][1]):
        found.setdefault(events[number][0], []).append(number)
    return found


def timeline(events: list[tuple[int, int]]) -> Timeline:
    users, time = (np.array([event[k] for event in events], np.int64) for k in (0, 1))
    return Timeline(users.astype(np.uint64), time * 1000)


@given(EVENTS, st.one_of(st.none(), st.integers(1, 4)))
def test_history_of_every_event(events: list[tuple[int, int]], limit: int | None) -> None:
    line = timeline(events)
    past = line.before(line.places(), limit)
    column = past.column(np.arange(len(events), dtype=np.uint64))
    gaps = past.gap_column(seconds=True)
    assert gaps.weights is not None
    users = by_user(events)
    for number, (user, _) in enumerate(events):
        mine = users[user]
        all_before = mine[: mine.index(number)]
        before = all_before if limit is None else all_before[-limit:]
        assert column.slice(number, number + 1).values.tolist() == before
        times = [events[i][1] * 1000 for i in all_before]
        seconds = [after - earlier for earlier, after in zip(times[:1] + times, times, strict=False)]
        seconds = seconds[len(seconds) - len(before) :]
        one = gaps.slice(number, number + 1)
        assert one.weights is not None
        assert one.weights.tolist() == seconds
        assert one.values.tolist() == [int(math.log(max(s, 1)) / 0.301) for s in seconds]


@given(EVENTS, st.sampled_from([1, 2]))
def test_the_last_events_are_held_out(events: list[tuple[int, int]], count: int) -> None:
    line = timeline(events)
    got = [sorted(line.order[part].tolist()) for part in line.held_out(count)]
    want = []
    for back in range(count, -1, -1):
        chosen = [mine[-1 - back] for mine in by_user(events).values() if len(mine) > back + 1]
        want.append(sorted(chosen))
    assert got == want
