"""Waiting for news: what ends a wait at once, and what a sleeping rank is woken by."""

from __future__ import annotations

import mmap
import os
import threading
import time

import numpy as np
import pytest

from persia_hpc._native import Watch
from tests.unit.test_transport_ring_ends import Ring, payload

LONG = 20.0  # seconds; a wait that was not ended would run into the test's own limit


def watch_of(ring: Ring, *more_bells: np.ndarray) -> Watch:
    return Watch([], [ring.receiver.ring], [ring.bell, *more_bells])


def test_entries_and_room_and_wake_end_a_wait_at_once() -> None:
    ring = Ring()
    consumer = watch_of(ring)
    producer = Watch([ring.sender.ring], [], [ring.producer_bell])
    assert not consumer.wait(0.0, 0.0)
    ring.sender.post(1)
    assert consumer.wait(0.0, LONG)
    record = ring.receiver.poll()
    assert record is not None
    assert not consumer.wait(1e-4, 1e-3), "nothing new since"
    record.release()
    for _ in range(9):
        ring.sender.post(1, arrays=[payload(1, 800)])
    assert ring.sender.pending
    assert not producer.wait(0.0, 0.0)
    while (record := ring.receiver.poll()) is not None:
        record.release()
    assert producer.wait(0.0, LONG), "room has come"
    while ring.sender.progress() or ring.sender.pending:
        while (record := ring.receiver.poll()) is not None:
            record.release()
    assert not producer.wait(0.0, 0.0), "no record waits for room"
    consumer.wake()
    assert consumer.wait(0.0, LONG), "a wake that comes before the wait is not lost"
    assert not consumer.wait(0.0, 0.0)


@pytest.mark.parametrize("num_bells", [1, 2])
@pytest.mark.parametrize("how", ["post", "wake"])
def test_a_sleeper_is_woken_by_another_thread(num_bells: int, how: str) -> None:
    ring = Ring()
    watch = watch_of(ring, *(np.zeros(1, np.uint64) for _ in range(num_bells - 1)))

    def act() -> None:
        time.sleep(0.05)
        if how == "post":
            ring.sender.post(1)
        else:
            watch.wake()

    thread = threading.Thread(target=act)
    before = time.monotonic()
    thread.start()
    while not watch.wait(0.0, LONG):
        pass
    assert time.monotonic() - before < LONG / 2
    thread.join()


@pytest.mark.parametrize("num_bells", [1, 2])
def test_a_sleeper_is_woken_across_processes_and_loses_no_wake(num_bells: int) -> None:
    """Two processes take turns a thousand times, each asleep while the other acts: a lost wake would hang."""
    turns = 1000
    shared = np.frombuffer(mmap.mmap(-1, 8 * 4096), np.uint8)
    rings = []
    for side in (0, 1):
        ring = Ring()
        begin = 3 * 4096 * side
        ring.data = shared[begin : begin + 4096]
        ring.words = shared[begin + 4096 : begin + 4096 + 512].view(np.uint64)
        ring.tail = shared[begin + 8192 : begin + 8200].view(np.uint64)
        ring.bell = shared[begin + 8256 : begin + 8264].view(np.uint64)
        ring.producer_bell = shared[begin + 8320 : begin + 8328].view(np.uint64)
        ring.connect()
        rings.append(ring)

    def play(me: int) -> None:
        watch = watch_of(rings[me], *(np.zeros(1, np.uint64) for _ in range(num_bells - 1)))
        for turn in range(turns):
            if turn or me:
                while (record := rings[me].receiver.poll()) is None:
                    watch.wait(0.0, LONG)
                record.release()
            rings[1 - me].sender.post(1, step=turn)

    before = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            play(1)
            code = 0
        finally:
            os._exit(code)
    play(0)
    assert os.waitpid(child, 0)[1] == 0
    assert time.monotonic() - before < LONG, "some wake was lost: a sleep ran to its end"
