"""Shares one vector of floats that all ranks add to and read; each owns a slice of it in its RMA window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from persia_hpc.transport.records import memory_of
from persia_hpc.transport.window import memory_problem, raise_together

Floats = npt.NDArray[np.float32]


class SharedVector:
    """Holds a vector that begins with rank 0's `initial`; `add` and `read` are one-sided.

    memory_grows: see `window.memory_problem`.
    Shapes: [n] float32.
    Collective over `comm`: the constructor and `free`.
    Raises UserError, on all ranks alike, for lack of memory.
    """

    def __init__(self, comm: MPI.Intracomm, initial: Floats, *, memory_grows: bool = False) -> None:
        self._comm = comm
        self._bounds = [len(initial) * r // comm.size for r in range(comm.size + 1)]
        own = self._bounds[comm.rank + 1] - self._bounds[comm.rank]
        node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
        assert isinstance(node_comm, MPI.Intracomm)
        raise_together(comm, memory_problem(node_comm, own * 4, memory_grows=memory_grows))
        node_comm.Free()
        problem = None
        try:
            self._win = MPI.Win.Allocate(max(1, own) * 4, 4, comm=comm)
        except MPI.Exception as error:
            problem = f"MPI could not allocate {own * 4} bytes for shared parameters: {error}"
        raise_together(comm, problem)
        self._win.Lock_all()
        begin = np.ascontiguousarray(initial, np.float32)
        comm.Bcast(begin)
        if own:
            mine = np.frombuffer(memory_of(self._win.tomemory()), np.float32)[:own]
            mine[:] = begin[self._bounds[comm.rank] : self._bounds[comm.rank + 1]]
        self._win.Sync()
        comm.Barrier()  # no rank adds before all parts are filled

    def add(self, delta: Floats, out: Floats) -> None:
        """Adds `delta` and writes to `out` what the vector is afterwards; atomic for each element."""
        self._each(lambda part, rank: self._win.Get_accumulate(delta[part], out[part], rank, op=MPI.SUM))
        out += delta  # what was there before came back

    def read(self, out: Floats) -> None:
        """Writes what the vector is now to `out`; atomic for each element."""
        unused = np.zeros_like(out)  # MPI wants one that isn't `out`
        self._each(lambda part, rank: self._win.Get_accumulate(unused[part], out[part], rank, op=MPI.NO_OP))

    def _each(self, call: Callable[[slice, int], None]) -> None:
        for turn in range(self._comm.size):
            rank = (self._comm.rank + turn) % self._comm.size  # else all would wait for rank 0 at once
            part = slice(self._bounds[rank], self._bounds[rank + 1])
            if part.start < part.stop:
                call(part, rank)
        self._win.Flush_all()

    def free(self) -> None:
        """Frees the window.

        Collective over the vector's ranks.
        """
        self._win.Unlock_all()
        self._win.Free()
