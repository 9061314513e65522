"""Shares one vector of floats that all ranks add to and read.

Each rank owns a slice of it in its RMA window. If some of several nodes have more than one rank, each node
has a vector, and one rank of each node exchanges with the other nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from persia_hpc.errors import UserError
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
            self._mine = np.frombuffer(memory_of(self._win.tomemory()), np.float32)[:own]
        self.replace(begin)
        comm.Barrier()  # no rank adds before all parts are filled

    def add(self, delta: Floats, out: Floats) -> None:
        """Adds `delta` and writes to `out` what the vector is afterwards; atomic for each element."""
        self._each(lambda part, rank: self._win.Get_accumulate(delta[part], out[part], rank, op=MPI.SUM))
        out += delta  # what was there before came back

    def read(self, out: Floats) -> None:
        """Writes what the vector is now to `out`; atomic for each element."""
        unused = np.zeros_like(out)  # MPI wants one that isn't `out`
        self._each(lambda part, rank: self._win.Get_accumulate(unused[part], out[part], rank, op=MPI.NO_OP))

    def replace(self, values: Floats) -> None:
        """Overwrites this rank's slice; no other rank may use the vector meanwhile."""
        if self._bounds[self._comm.rank] < self._bounds[self._comm.rank + 1]:
            self._mine[:] = values[self._bounds[self._comm.rank] : self._bounds[self._comm.rank + 1]]
        self._win.Sync()

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


class NodeVector:
    """Is a `SharedVector` on each node, between which the first rank of each node exchanges changes.

    While that rank adds, a thread of its own takes, again and again, what has changed in the node's vector
    since last time, adds it to a vector of all nodes, and adds what that one has besides to the node's. So
    each change gets everywhere once, and no `add` waits for a link. It returns one's own changes, those of
    the node, and those of other nodes that have arrived.
    Shapes: [n] float32.
    Collective over `comm`: the constructor, `read` and `free`. `node_comm`: the ranks of this one's node.
    Raises UserError, on all ranks alike, for lack of memory.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        node_comm: MPI.Intracomm,
        initial: Floats,
        *,
        memory_grows: bool = False,
    ) -> None:
        self._comm, self._node_comm = comm, node_comm
        self._exchanged = np.array(initial, np.float32)  # what all nodes had after the last exchange
        comm.Bcast(self._exchanged)
        self._here = self._vector(node_comm, memory_grows)
        leads = node_comm.rank == 0
        self._leaders: MPI.Intracomm = MPI.Intracomm(comm.Split(0 if leads else MPI.UNDEFINED, comm.rank))
        self._all = self._vector(self._leaders if leads else None, memory_grows)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exchange") if leads else None
        self._running: Future[None] | None = None
        size = len(self._exchanged) if leads else 0
        self._seen, self._now = np.empty(size, np.float32), np.empty(size, np.float32)

    def _vector(self, comm: MPI.Intracomm | None, memory_grows: bool) -> SharedVector:
        """Makes the vector of a part of the ranks, `comm`, if this rank is one of them.

        Collective over all ranks.
        Raises UserError on all of them if some have no memory for it.
        """
        problem, made = None, None
        try:
            if comm is not None:
                made = SharedVector(comm, self._exchanged, memory_grows=memory_grows)
        except UserError as error:
            problem = str(error)
        raise_together(self._comm, problem)
        return made  # type: ignore[return-value]  # None only where it isn't used

    def add(self, delta: Floats, out: Floats) -> None:
        """Adds `delta` and writes to `out` what this node's vector is afterwards; atomic for each element."""
        self._here.add(delta, out)
        if self._thread is not None and (self._running is None or self._running.done()):
            self._finish()
            self._running = self._thread.submit(self._exchange)

    def read(self, out: Floats) -> None:
        """Writes to `out` what the vector is with all changes of all ranks, none of which may add meanwhile.

        Collective over the vector's ranks.
        """
        if self._thread is not None:
            self._finish()
            self._exchange()
        self._comm.Barrier()  # all nodes' changes are there
        if self._thread is not None:
            self._all.read(self._exchanged)
        self._node_comm.Bcast(self._exchanged)
        self._here.replace(self._exchanged)
        out[:] = self._exchanged

    def _exchange(self) -> None:
        self._here.read(self._seen)
        np.subtract(self._seen, self._exchanged, out=self._exchanged)  # the node's changes
        self._all.add(self._exchanged, self._now)
        np.subtract(self._now, self._seen, out=self._exchanged)  # what the node lacks
        self._here.add(self._exchanged, self._seen)
        self._exchanged, self._now = self._now, self._exchanged

    def _finish(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def free(self) -> None:
        """Frees the windows.

        Collective over the vector's ranks.
        """
        if self._thread is not None:
            self._finish()
            self._thread.shutdown()
            self._all.free()
            self._leaders.Free()
        self._here.free()
        self._node_comm.Free()


def share_vector(
    comm: MPI.Intracomm, initial: Floats, *, memory_grows: bool = False
) -> SharedVector | NodeVector:
    """Returns a vector of all ranks of `comm`, in a form that fits where they are.

    Collective over `comm`.
    Raises UserError, on all ranks alike, for lack of memory.
    """
    node_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
    assert isinstance(node_comm, MPI.Intracomm)
    sizes = comm.allgather(node_comm.size)
    if max(sizes) in (1, comm.size):
        node_comm.Free()
        return SharedVector(comm, initial, memory_grows=memory_grows)
    return NodeVector(comm, node_comm, initial, memory_grows=memory_grows)
