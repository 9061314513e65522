"""When an export's next version begins, on a clock and a disk of the test's own."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.trainer.next_version import LONGEST_SECONDS, NextVersion

FULL, OTHER = os.strerror(errno.ENOSPC), os.strerror(errno.EACCES)


class World:
    """A clock that the test turns, and a disk that it fills."""

    def __init__(self, patch: pytest.MonkeyPatch, every_seconds: float = 1.0) -> None:
        self.seconds, self.free, self.asked = 0.0, 100, 0
        patch.setattr("time.monotonic", lambda: self.seconds)
        self.version = NextVersion(every_seconds, self.free_bytes)

    def free_bytes(self) -> int:
        self.asked += 1
        return self.free

    def try_in_vain(self, problem: str) -> None:
        assert self.version.is_due()
        self.version.begin()
        self.version.fail(problem)

    def next_try(self, step: float = 0.25) -> float:
        """Turns the clock until a version is due; returns how far."""
        began = self.seconds
        while not self.version.is_due():
            self.seconds += step
            assert self.seconds < began + 10 * LONGEST_SECONDS
        return self.seconds - began


def test_a_version_is_due_so_many_seconds_after_the_one_before_began(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 1.5)
    for _ in range(3):
        assert world.version.is_due()
        world.version.begin()
        world.version.succeed()
        assert world.next_try() == 1.5


def test_each_failure_doubles_the_time_to_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    waits = []
    for _ in range(8):
        world.try_in_vain(OTHER)
        waits.append(world.next_try())
    assert waits == [2, 4, 8, 16, 32, LONGEST_SECONDS, LONGEST_SECONDS, LONGEST_SECONDS]
    world.version.begin()
    world.version.succeed()
    assert (world.version.failures, world.next_try()) == (0, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_stays_full_is_tried_once_a_minute(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    world = World(monkeypatch)
    for free in (100, 100, 40):  # also when others fill it further
        world.try_in_vain(os.strerror(number))
        world.free = free
        assert world.next_try() == LONGEST_SECONDS


def test_room_is_used_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.try_in_vain(FULL)
    world.seconds += 20
    assert not world.version.is_due()
    world.free += 1
    assert world.next_try() == 1
    world.try_in_vain(FULL)  # it wasn't enough
    assert world.next_try() == LONGEST_SECONDS


def test_a_directory_may_be_gone_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    for _ in range(2000):  # more than a float's exponent
        world.try_in_vain(OTHER)
        world.seconds += LONGEST_SECONDS
    assert world.version.is_due()


def test_a_run_that_ends_tries_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.try_in_vain(FULL)
    assert not world.version.is_due()
    world.version.make_due()
    assert world.version.is_due()


def test_versions_rarer_than_a_minute_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 300.0)
    for problem in (FULL, OTHER):
        world.try_in_vain(problem)
        assert world.next_try() == 300


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200)), max_size=40))
def test_a_full_disk_is_asked_at_most_once_in_a_period(moves: list[tuple[float, int]]) -> None:
    """Steps are many times as frequent as versions; none of them may pay for it."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch)
        world.try_in_vain(FULL)
        for seconds, free in moves:
            world.free = free
            until = world.seconds + seconds
            while world.seconds < until:
                world.seconds += 0.25
                if world.version.is_due():
                    assert free > 100 or world.seconds >= LONGEST_SECONDS
                    return
            assert world.asked <= 2 + world.seconds
