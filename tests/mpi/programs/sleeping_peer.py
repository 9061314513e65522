"""One rank of node 1 is outside MPI for seconds: rank 0 must go on with the other one.

Two ranks on each of two nodes. Rank 2 announces a record to rank 0, sleeps, and then takes what came. Rank 3
echoes. Rank 0 sends to both as much as it can. Prints what rank 0 did while rank 2 slept.

    sleeping_peer.py carried|whole|pieces

carried: entries come with their notices. pieces: they are fetched as over a slow link.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from mpi4py import MPI

from persia_hpc.transport import remote_links, remote_source
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter
from persia_hpc.transport.ring import RingReceiver, RingSender

SLEEP_SECONDS = 3.0
RING_BYTES = 1 << 16
SIZE = 3000  # some 20 records fill a ring
SENT_TO_SLEEPER = 100
SENT_SINGLY = 50  # each announced by itself: so many notices wait for the sleeper
if sys.argv[1] != "carried":
    remote_links.CARRIED_BYTES = 0
if sys.argv[1] == "pieces":
    remote_source.PIECE_SECONDS, remote_source.LEAST_PIECE_BYTES = 1e-9, 500
comm = MPI.COMM_WORLD
channels = [Channel(*pair, "r", RING_BYTES) for peer in (2, 3) for pair in ((0, peer), (peer, 0))]
plane = Plane(comm, [*channels, Channel(0, 2, "single", 1 << 20)])
waiter = Waiter(plane)


def content(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 256, SIZE, np.uint8)


def post(sender: RingSender, step: int) -> None:
    sender.post(1, step=step, arrays=[content(step)])


def take(receiver: RingReceiver, step: int) -> bool:
    """Whether a record has come; it must be the one of `step`."""
    record = receiver.poll()
    if record is None:
        return False
    assert record.step == step, (record, step)
    assert np.array_equal(record.arrays[0], content(step)), record
    record.release()
    return True


def advance(moved: bool) -> None:
    if plane.progress() or moved:
        waiter.busy()
    else:
        waiter.idle()


def hub() -> dict[str, float]:
    sleeper, echo = plane.sender(2, "r"), plane.sender(3, "r")
    time.sleep(0.2)  # by now rank 2 sleeps
    begin = time.monotonic()
    end = begin + SLEEP_SECONDS - 1
    for step in range(SENT_TO_SLEEPER):
        post(sleeper, step)
    for step in range(SENT_SINGLY):
        post(plane.sender(2, "single"), step)
        plane.progress()
    sent = echoed = 0
    longest = time.monotonic() - begin
    while begin < end:
        if sent - echoed < 8:
            post(echo, sent)
            sent += 1
        moved = take(plane.receiver(3, "r"), echoed)
        echoed += moved
        advance(moved)
        last, begin = begin, time.monotonic()
        longest = max(longest, begin - last)
    waiting = sleeper.pending
    echo.close()
    sleeper.close()
    got = 0
    while plane.pending or not plane.receiver(3, "r").closed or not got:
        if echoed < sent:
            echoed += take(plane.receiver(3, "r"), echoed)
        else:
            assert plane.receiver(3, "r").poll() is None
        got += take(plane.receiver(2, "r"), 7)
        advance(False)
    assert echoed == sent
    return {"echoed": echoed, "longest_pass": longest, "waiting": waiting}


def sleeper() -> None:
    post(plane.sender(0, "r"), 7)
    plane.progress()
    time.sleep(SLEEP_SECONDS)
    for name, count in (("r", SENT_TO_SLEEPER), ("single", SENT_SINGLY)):
        for step in range(count):
            while not take(plane.receiver(0, name), step):
                advance(False)


def echo() -> None:
    receiver, sender = plane.receiver(0, "r"), plane.sender(0, "r")
    step = 0
    while not receiver.closed or plane.pending:
        moved = not receiver.closed and take(receiver, step)
        if moved:
            post(sender, step)
            step += 1
        elif receiver.closed and not sender.closed:
            sender.close()
        advance(moved)


comm.Barrier()
report = {0: hub, 2: sleeper, 3: echo}.get(comm.rank, dict)()
if comm.rank == 0:
    print(json.dumps(report), flush=True)
comm.Barrier()
plane.free()
