"""CPU share of a loop that polls and waits while nothing comes; prints the largest of all ranks."""

from __future__ import annotations

import sys
import time

from mpi4py import MPI

from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter

comm = MPI.COMM_WORLD
ranks = range(comm.size)
channels = [Channel(p, c, name, 1 << 16) for p in ranks for c in ranks if p != c for name in ("a", "b", "c")]
plane = Plane(comm, channels, force_remote=sys.argv[1] == "remote")
receivers = [
    plane.receiver(channel.producer, channel.name) for channel in channels if channel.consumer == comm.rank
]
waiter = Waiter(plane)


def wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for receiver in receivers:
            assert receiver.poll() is None
        plane.progress()
        waiter.idle()


wait(0.3)
before = time.process_time()
wait(1.0)
share = comm.allreduce(time.process_time() - before, MPI.MAX)
plane.free()
if comm.rank == 0:
    print(f"{share:.4f}")
