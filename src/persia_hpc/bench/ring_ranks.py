"""Runs a rank of `persia-hpc bench ring`: `python -m persia_hpc.bench.ring_ranks REPEATS`, on two ranks.

Prints a JSON line for each case.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Bytes
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.records import Record, memory_of
from persia_hpc.transport.window import Window

RING_BYTES = 4 << 20  # the default of transport.ring_bytes
SIZES = (64, 1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
POOL_BYTES = (
    64 << 20
)  # what is copied comes from all over this: not from a cache that the copy before has filled
BLOCK_BYTES = 16 << 20
MAX_RECORDS = 500
ROUND_TRIPS = 100
IDLE_SECONDS = 2.0


class Pair:
    """Connects two ranks with a ring in each direction."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.rank = comm.rank
        channels = [Channel(0, 1, "bench", RING_BYTES), Channel(1, 0, "bench", RING_BYTES)]
        self.plane = Plane(comm, channels)
        self.sender = self.plane.sender(1 - comm.rank, "bench")
        self.receiver = self.plane.receiver(1 - comm.rank, "bench")
        self.waiter = Waiter(self.plane, spin=0.0)

    def take(self, wait: Callable[[], object] = lambda: None) -> Record:
        """Waits for the next record and returns it, released."""
        while (record := self.receiver.poll()) is None:
            wait()
        record.release()
        return record

    def transfer(self, pool: Bytes, size: int, count: int) -> float:
        """Returns the seconds until rank 1 has taken `count` records of `size` bytes."""
        sender, plane = self.sender, self.plane
        self.comm.Barrier()
        begin = time.perf_counter()
        if self.rank == 0:
            for at in places(size, count):
                sender.post(1, arrays=[pool[at : at + size]])
                while sender.pending:
                    plane.progress()
            self.take()
        else:
            for _ in range(count):
                self.take()
            sender.post(1)
        return time.perf_counter() - begin

    def round_trips(self, wait: Callable[[], object], count: int) -> float:
        """Returns the mean seconds of one of `count` round trips."""
        payload = np.zeros(64, np.uint8)
        self.comm.Barrier()
        begin = time.perf_counter()
        for _ in range(count):
            if self.rank == 0:
                self.sender.post(1, arrays=[payload])
            self.take(wait)
            if self.rank == 1:
                self.sender.post(1, arrays=[payload])
        return (time.perf_counter() - begin) / count

    def idle_share(self) -> float:
        """Returns the CPU share of a loop that waits and finds nothing; the larger one of both ranks."""
        end = time.monotonic() + IDLE_SECONDS
        begin, cpu = time.monotonic(), time.process_time()
        while time.monotonic() < end:
            self.receiver.poll()
            self.plane.progress()
            self.waiter.idle()
        share = (time.process_time() - cpu) / (time.monotonic() - begin)
        return float(self.comm.allreduce(share, MPI.MAX))


def places(size: int, count: int) -> list[int]:
    """Returns where `count` pieces of the pool begin."""
    step = max(size, POOL_BYTES // count // 64 * 64)
    return [i * step % (POOL_BYTES - size + 1) // 64 * 64 for i in range(count)]


def copy(pool: Bytes, to: Bytes, size: int, count: int) -> float:
    """Returns the seconds of plainly copying the same pieces, into memory that is reused in the same way."""
    begin = time.perf_counter()
    for at in places(size, count):
        to[at : at + size] = pool[at : at + size]
    return time.perf_counter() - begin


def bare_round_trips(comm: MPI.Intracomm, words: list[memoryview], count: int) -> float:
    """Returns the mean seconds of one round trip by polling alone, the least that Python can reach.

    Each rank polls a word of its own, which the other stores.
    """
    mine, theirs = words[comm.rank], words[1 - comm.rank]
    first = mine[0]
    comm.Barrier()  # after which the other may store
    begin = time.perf_counter()
    for number in range(first + 1, first + count + 1):
        if comm.rank == 0:
            theirs[0] = number
        while mine[0] != number:
            pass
        if comm.rank == 1:
            theirs[0] = number
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Runs all cases."""
    repeats = int(sys.argv[1])
    comm = MPI.COMM_WORLD
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[comm.rank % len(cores)]})
    pair = Pair(comm)

    def say(**case: Any) -> None:
        if comm.rank == 0:
            print(json.dumps(case), flush=True)

    window = Window(comm, 8, shared=True)
    window.open()
    words = [memory_of(window.peer(rank)[:8]).cast("Q") for rank in range(2)]
    comm.Barrier()
    pool, to = np.ones(POOL_BYTES, np.uint8), np.zeros(POOL_BYTES, np.uint8)
    for size in SIZES:
        count = min(MAX_RECORDS, max(2, BLOCK_BYTES // size))
        ours, limit = [], []
        for turn in range(repeats + 1):
            seconds = pair.transfer(pool, size, count)
            if comm.rank == 0:
                bare = copy(pool, to, size, count)
                ours += [size * count / seconds / 1e9] * (turn > 0)
                limit += [size * count / bare / 1e9] * (turn > 0)
        say(case={"bytes": size}, unit="GB/s", ours=ours, limits={"memcpy": limit}, higher_is_better=True)
    spin, asleep, bare_words = [], [], []
    for turn in range(repeats + 1):
        spin += [1e6 * pair.round_trips(lambda: None, ROUND_TRIPS)] * (turn > 0)
        bare_words += [1e6 * bare_round_trips(comm, words, ROUND_TRIPS)] * (turn > 0)
        asleep += [1e6 * pair.round_trips(pair.waiter.idle, ROUND_TRIPS)] * (turn > 0)
    say(case={"round trip": "spinning"}, unit="us", ours=spin, limits={"two words": bare_words})
    say(case={"round trip": "asleep"}, unit="us", ours=asleep, limits={"two words": bare_words})
    say(case={"idle": f"{IDLE_SECONDS:g} s"}, unit="% of a core", ours=[100 * pair.idle_share()], limits={})
    comm.Barrier()
    window.free()
    pair.plane.free()


if __name__ == "__main__":
    main()
