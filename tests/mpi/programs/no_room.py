"""Asks for rings that no memory holds, two ranks on each of two nodes: all get the error, then all works."""

from __future__ import annotations

import pytest
from mpi4py import MPI

from persia_hpc.errors import UserError
from persia_hpc.transport.plane import Channel, Plane

comm = MPI.COMM_WORLD
for consumer, ring_bytes, words in (
    (1, 2**27, r"the rings of the 2 ranks on node0 need 150\d+ bytes in /dev/shm, which has .*ring_bytes"),
    (2, 2**46, r"the rings of the 2 ranks on node. need \d+ bytes of memory, .*ring_bytes"),
):
    with pytest.raises(UserError, match=words):
        Plane(comm, [Channel(0, consumer, "huge", ring_bytes)])
    plane = Plane(comm, [Channel(0, consumer, "small", 4096)])
    plane.free()
if comm.rank == 0:
    print("refused")
