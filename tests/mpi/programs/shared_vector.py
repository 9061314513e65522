"""All ranks add to one vector at the same time: nothing is lost, and what comes back contains one's own."""

import sys

import numpy as np
from mpi4py import MPI

from persia_hpc.transport.shared_vector import SharedVector

comm = MPI.COMM_WORLD
for length in (0, 1, comm.size, 1000, 100_003):
    initial = np.arange(length, dtype=np.float32) if comm.rank == 0 else np.full(length, -1, np.float32)
    vector = SharedVector(comm, initial)
    seen = np.empty(length, np.float32)
    vector.read(seen)
    comm.Barrier()
    start = np.arange(length, dtype=np.float32)
    assert np.array_equal(seen, start)
    last = seen.copy()
    for _ in range(50):
        vector.add(np.full(length, comm.rank + 1, np.float32), seen)
        assert (seen >= last + comm.rank + 1).all()  # whole numbers: sums are exact
        last[:] = seen
    comm.Barrier()
    vector.read(seen)
    assert np.array_equal(seen, start + 50 * comm.size * (comm.size + 1) // 2), seen
    comm.Barrier()
    vector.free()
sys.stdout.write("done\n")
