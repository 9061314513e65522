"""Rank 1 computes outside MPI while rank 0, on another node, sends to it; prints how long the sends took.

computing_peer.py thread|none        with or without the progress thread on rank 1
"""

from __future__ import annotations

import contextlib
import sys
import time

import numpy as np
from mpi4py import MPI

from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import ProgressThread, Waiter

COMPUTE_SECONDS = 3.0
comm = MPI.COMM_WORLD
plane = Plane(comm, [Channel(0, 1, "work", 1 << 20)])
assert plane.remote, "the two ranks must be on two nodes"
waiter = Waiter(plane)
comm.Barrier()
if comm.rank == 0:
    sender = plane.sender(1, "work")
    time.sleep(0.1)
    begin = time.monotonic()
    for step in range(5):
        sender.post(1, step=step, arrays=[np.full(20_000, step, np.float32)])
        plane.progress()
    print(f"{time.monotonic() - begin:.3f}", flush=True)
    while plane.pending:
        plane.progress()
else:
    matrix = np.ones((300, 300), np.float32)
    with ProgressThread(plane) if sys.argv[1] == "thread" else contextlib.nullcontext():
        end = time.monotonic() + COMPUTE_SECONDS
        while time.monotonic() < end:
            matrix @ matrix
    receiver = plane.receiver(0, "work")
    steps: list[int] = []
    while len(steps) < 5:
        record = receiver.poll()
        if record is None:
            plane.progress()
            waiter.idle()
            continue
        assert np.all(record.arrays[0] == record.step)
        steps.append(record.step)
        record.release()
    assert steps == [0, 1, 2, 3, 4]
comm.Barrier()
plane.free()
