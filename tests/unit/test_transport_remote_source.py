"""Fetching piece by piece over a link of some speed: what comes, in which order, and how soon."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from persia_hpc.transport.remote_source import LEAST_PIECE_BYTES, PIECE_SECONDS, Lane, Ranges, RemoteSource

RING_BYTES = 1 << 20
CHANNELS = 3


class Request:
    """Is complete, with the bytes in place, once the link has carried them."""

    def __init__(self, link: Link, here: np.ndarray, begin: int, due: float) -> None:
        self.link, self.here, self.begin, self.due = link, here, begin, due

    def Test(self) -> bool:  # noqa: N802
        if self.link.now < self.due:
            return False
        self.here[:] = self.link.window[self.begin : self.begin + len(self.here)]
        return True


class Link:
    """Stands for a window behind one connection of some rate (bytes/s) and delay (s), and for the clock.


    burst: bytes that pass at once when it has rested for a while.
    """

    def __init__(self, rate: float, delay: float = 1e-4, burst: int = 0) -> None:
        self.rate, self.delay, self.burst = rate, delay, burst
        self.now = self.free = 0.0
        self.window = np.random.default_rng(0).integers(0, 256, CHANNELS * RING_BYTES, np.uint8)
        self.sizes: list[int] = []

    def Rget(self, here: list[Any], producer: int, there: list[Any]) -> Request:  # noqa: N802
        begin, size, _ = there
        assert producer == 7
        assert here[1] == size == len(here[0]) > 0
        self.sizes.append(size)
        at_once = self.burst if self.now > self.free + 0.05 else 0
        self.free = max(self.free, self.now + self.delay) + max(0, size - at_once) / self.rate
        return Request(self, here[0], begin, self.free)


class Consumer:
    """A rank that fetches from three channels of one producer."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.lane = Lane(cast(MPI.Win, link), 7, lambda: link.now)
        self.data = [np.zeros(RING_BYTES, np.uint8) for _ in range(CHANNELS)]
        self.words = [np.zeros(RING_BYTES // 64, np.uint64) for _ in range(CHANNELS)]
        self.sources = [RemoteSource(i * RING_BYTES, self.data[i], self.words[i]) for i in range(CHANNELS)]
        self.announced = [0] * CHANNELS

    def fetch(self, channel: int, entries: int, ranges: Ranges) -> None:
        self.announced[channel] += entries
        self.lane.fetch(self.sources[channel], self.announced[channel], ranges)

    def carry(self, channel: int, entries: int, ranges: Ranges) -> None:
        """Takes entries with their notice."""
        self.announced[channel] += entries
        there = self.link.window[channel * RING_BYTES : (channel + 1) * RING_BYTES]
        carried = np.concatenate([there[b:e] for b, e in ranges])
        self.lane.take(self.sources[channel], self.announced[channel], ranges, carried)

    def shown(self, channel: int) -> int:
        return int(self.words[channel].max())

    def same(self, channel: int, ranges: Ranges) -> bool:
        there = self.link.window[channel * RING_BYTES : (channel + 1) * RING_BYTES]
        return all(np.array_equal(self.data[channel][b:e], there[b:e]) for b, e in ranges)

    def until(self, channel: int, seconds: float, each: float = 1e-3) -> float:
        """Polls each millisecond, or so, until all that was announced is shown; the time that it took."""
        begin = self.link.now
        while self.shown(channel) < self.announced[channel]:
            assert self.link.now - begin < seconds, f"channel {channel} has only {self.shown(channel)}"
            self.link.now += each
            self.lane.finish()
        return self.link.now - begin


SIZES = st.one_of(
    st.integers(1, 300), st.integers(LEAST_PIECE_BYTES - 2, LEAST_PIECE_BYTES + 2), st.integers(1, 400_000)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, CHANNELS - 1), st.integers(1, 8), SIZES, st.booleans(), st.booleans()),
        st.floats(0, 0.3),  # the rank is away so long
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([1e5, 6e5, 2.5e6, 1e9]), st.sampled_from([0.0, 1e-4, 0.1]))
def test_whatever_is_announced_comes_whole_and_in_order(
    steps: list[tuple[int, int, int, bool, bool] | float], rate: float, delay: float
) -> None:
    consumer = Consumer(Link(rate, delay))
    lane = consumer.lane
    ends = [0] * CHANNELS
    fetched = 0
    sent: list[list[tuple[int, Ranges]]] = [[] for _ in range(CHANNELS)]

    def check() -> None:
        for channel, notices in enumerate(sent):
            shown = consumer.shown(channel)
            assert shown in {0, *(last for last, _ in notices)}
            assert all(consumer.same(channel, ranges) for last, ranges in notices if last <= shown)

    for step in steps:
        if isinstance(step, float):
            consumer.link.now += step
            lane.finish()
            check()
            continue
        channel, entries, size, wraps, carried = step
        begin = ends[channel]
        if begin + 2 * size > RING_BYTES:
            continue
        # As at the ring's end: two ranges, the second from another place.
        ranges = [(begin, begin + size)] + [(RING_BYTES - size, RING_BYTES)] * (wraps and size % 2)
        ends[channel] += size
        (consumer.carry if carried else consumer.fetch)(channel, entries, ranges)
        fetched += 0 if carried else sum(e - b for b, e in ranges)
        sent[channel].append((consumer.announced[channel], ranges))
        check()
    while lane.busy:
        consumer.link.now += 0.01
        lane.finish()
        check()
    assert [consumer.shown(channel) for channel in range(CHANNELS)] == consumer.announced
    for words, last in zip(consumer.words, consumer.announced, strict=True):
        assert np.array_equal(np.sort(words)[::-1][:last], np.arange(last, 0, -1))
    assert sum(consumer.link.sizes) == fetched


def test_entries_that_come_with_their_notice_wait_only_for_those_before_them() -> None:
    consumer = Consumer(Link(1e6))
    consumer.carry(1, 2, [(0, 500)])
    assert consumer.shown(1) == 2
    consumer.fetch(0, 1, [(0, 50_000)])
    consumer.carry(0, 1, [(50_000, 50_100)])
    consumer.carry(1, 1, [(500, 900)])
    assert (consumer.shown(0), consumer.shown(1)) == (0, 3)
    assert consumer.until(0, 1) < 0.06
    assert consumer.same(0, [(0, 50_100)])


@pytest.mark.parametrize("mbit", [5, 20, 100])
def test_a_short_entry_waits_for_moments_behind_long_ones(mbit: float) -> None:
    """Without pieces it would wait for two whole entries, 1.1 s at 5 Mbit/s."""
    rate = mbit * 1e6 / 8
    consumer = Consumer(Link(rate))
    waits = []
    for _ in range(8):
        for _ in range(2):
            consumer.fetch(0, 1, [(0, 350_000)])
        consumer.link.now += 0.01
        consumer.lane.finish()
        consumer.fetch(1, 1, [(0, 2000)])
        waits.append(consumer.until(1, 5))
        consumer.until(0, 5)
    assert max(waits[1:]) < 3 * PIECE_SECONDS + 2 * LEAST_PIECE_BYTES / rate
    # The link never rests between pieces.
    begin = consumer.link.now
    for _ in range(3):
        consumer.fetch(0, 1, [(0, 350_000)])
    consumer.until(0, 60)
    assert consumer.link.now - begin < 1.02 * 3 * 350_000 / rate + 0.01


def test_entries_are_fetched_whole_from_a_fast_link() -> None:
    consumer = Consumer(Link(1e9))
    for _ in range(5):
        consumer.fetch(0, 1, [(0, 350_000)])
        consumer.until(0, 1)
    assert consumer.link.sizes[-3:] == [350_000] * 3


def test_what_passes_at_once_after_a_rest_isnt_the_links_rate() -> None:
    """Then so much would be asked for that a short entry would wait for long."""
    rate = 2.5e6
    consumer = Consumer(Link(rate, burst=60_000))
    for _ in range(8):
        consumer.link.now += 0.1
        consumer.fetch(0, 1, [(0, 62_000)])
        consumer.until(0, 1)
        consumer.fetch(0, 1, [(0, 290_000)])
        consumer.until(0, 1)
    assert max(consumer.link.sizes[20:]) <= 1.5 * rate * PIECE_SECONDS


def test_a_pause_doesnt_make_a_fast_link_slow() -> None:
    """As when the producer, or this rank, computes for seconds: that isn't the link's rate."""
    consumer = Consumer(Link(1e8))
    for number in range(12):
        consumer.fetch(0, 1, [(0, 350_000)])
        if number == 8:
            consumer.link.now += 3.0
        consumer.until(0, 5)
    assert consumer.link.sizes[-3:] == [350_000] * 3


@pytest.mark.parametrize("size", [100_000, 350_000])
@pytest.mark.parametrize("pause", [0.03, 0.1, 0.3])
def test_pauses_again_and_again_dont_make_a_fast_link_slow(size: int, pause: float) -> None:
    """As of a rank that computes whenever it has asked for an entry."""
    consumer = Consumer(Link(1e8))
    for number in range(60):
        consumer.fetch(0, 1, [(0, 350_000 if number < 5 else size)])
        if number >= 5:
            consumer.link.now += pause
        consumer.until(0, 5)
    assert consumer.link.sizes[-3:] == [size] * 3


@pytest.mark.parametrize("each", [1e-3, 0.05])
def test_a_link_that_becomes_slow_is_known_to_be_even_by_a_rank_that_looks_seldom(each: float) -> None:
    consumer = Consumer(Link(3e7))
    for number in range(40):
        if number == 5:
            consumer.link.rate = 1e6
        consumer.fetch(0, 1, [(0, 350_000)])
        consumer.until(0, 5, each)
    assert max(consumer.link.sizes[-3:]) <= max(1.5 * PIECE_SECONDS, 1.5 * each) * 1e6
