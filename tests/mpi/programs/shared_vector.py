"""All ranks add to one vector at the same time: nothing is lost, and what comes back contains one's own.

`shared_vector.py SIZE`: ranks stand for nodes of so many; 0: for one node, or for those on which they are.
"""

import sys
import time

import numpy as np
from mpi4py import MPI

from persia_hpc.transport.shared_vector import NodeVector, SharedVector, share_vector

comm = MPI.COMM_WORLD
of_node = int(sys.argv[1])
one_node = len(set(comm.allgather(MPI.Get_processor_name()))) == 1


def vector_of(initial):
    if of_node:
        return NodeVector(comm, comm.Split(comm.rank // of_node, comm.rank), initial)
    return share_vector(comm, initial)


for length in (0, 1, comm.size, 1000, 100_003):
    initial = np.arange(length, dtype=np.float32) if comm.rank == 0 else np.full(length, -1, np.float32)
    vector = vector_of(initial)
    assert of_node or isinstance(vector, SharedVector) == one_node
    seen = np.empty(length, np.float32)
    vector.read(seen)
    comm.Barrier()
    start = np.arange(length, dtype=np.float32)
    assert np.array_equal(seen, start)
    for turn in (1, 2):
        last = seen.copy()
        for _ in range(25 + 5 * comm.rank):
            vector.add(np.full(length, comm.rank + 1, np.float32), seen)
            assert (seen >= last + comm.rank + 1).all()  # whole numbers: sums are exact
            last[:] = seen
        added = sum((25 + 5 * rank) * (rank + 1) for rank in range(comm.size))
        expected, limit = start + turn * added, time.monotonic() + 30
        # All gets to all, in time, without `read`.
        while not comm.allreduce(bool(np.array_equal(seen, expected)), MPI.LAND):
            assert time.monotonic() < limit
            vector.add(np.zeros(length, np.float32), seen)
        vector.read(seen)
        assert np.array_equal(seen, expected), (turn, seen)
        assert len(set(comm.allgather(seen.tobytes()))) == 1
        comm.Barrier()
    vector.free()
sys.stdout.write("done\n")
