"""Makes a window of each rank's memory, for plain stores within a node or one-sided MPI across."""

from __future__ import annotations

import logging
import os
import socket

import numpy as np
from mpi4py import MPI

from persia_hpc.arrays import Bytes
from persia_hpc.errors import UserError
from persia_hpc.runtime.node_memory import SHARED_MEMORY, available_memory, shared_memory_room
from persia_hpc.transport.records import ALIGNMENT, memory_of

LOG = logging.getLogger("persia_hpc")
_GAP = 4096  # MPI aligns a window to 8 or 16 bytes only: room to shift it


class Window:
    """Holds memory of `num_bytes` on this rank, 64-byte aligned, in a passive-target epoch on every peer.

    The constructor does not raise: `problem` says what went wrong, and all ranks must agree on it before they
    call `open()`.

    Collective over `comm`: the constructor, `open()` and `free()`.
    """

    def __init__(self, comm: MPI.Intracomm, num_bytes: int, *, shared: bool) -> None:
        self.problem: str | None = None
        self._comm = comm
        self._num_bytes = num_bytes
        memory = None
        if not shared:
            try:
                memory = np.empty(num_bytes + _GAP, np.uint8)
            except MemoryError as error:
                self.problem = _allocation_problem(num_bytes, shared, error)
            if any(comm.allgather(self.problem)):  # else the others would wait for this rank's window
                return
        info = MPI.Info.Create()
        try:
            if shared:
                info.Set("alloc_shared_noncontig", "true")  # each rank's part on pages of its own
                self.win = MPI.Win.Allocate_shared(num_bytes + _GAP, 1, info, comm)
            else:
                # Not Win.Allocate: Open MPI then lets one rank of a node answer for all of it.
                self.win = MPI.Win.Create(memory, 1, info, comm)
        except MPI.Exception as error:
            self.problem = _allocation_problem(num_bytes, shared, error)
        else:
            if self.win.model != MPI.WIN_UNIFIED:
                self.problem = (
                    f"the MPI window has memory model {self.win.model}, expected MPI_WIN_UNIFIED "
                    f"({MPI.WIN_UNIFIED}), without which polling local memory is undefined; "
                    "use an MPI that has it on this network (Open MPI: OMPI_MCA_osc=ucx or rdma)"
                )
        finally:
            info.Free()

    def open(self) -> None:
        """Zeroes the memory and begins the epoch; a barrier must follow before the first access.

        Collective over the window's ranks.
        """
        own = np.frombuffer(memory_of(self.win.tomemory()), np.uint8)
        shift = -own.ctypes.data % ALIGNMENT
        self.memory: Bytes = own[shift : shift + self._num_bytes]
        self._shifts: list[int] = self._comm.allgather(shift)
        self.win.Lock_all(MPI.MODE_NOCHECK)
        self.memory[:] = 0
        self.win.Sync()

    def offset(self, rank: int, position: int) -> int:
        """Returns the displacement of a byte of a peer's memory, for one-sided calls."""
        return self._shifts[rank] + position

    def peer(self, rank: int) -> Bytes:
        """Returns a peer's memory (shared windows only)."""
        buffer, _ = self.win.Shared_query(rank)
        return np.frombuffer(memory_of(buffer), np.uint8)[self._shifts[rank] :]

    def free(self) -> None:
        """Frees the memory; every view into it is invalid afterwards.

        Collective over the window's ranks.
        """
        self.win.Unlock_all()
        self.memory = np.empty(0, np.uint8)
        self.win.Free()


def raise_together(comm: MPI.Intracomm, problem: str | None) -> None:
    """Stops all ranks if any has a problem.

    Collective over `comm`.
    Raises UserError on all ranks, with the text of the first rank that has a problem.
    """
    for rank, found in enumerate(comm.allgather(problem)):
        if found is not None:
            raise UserError(found if found == problem else f"{found} (found by rank {rank} of this plane)")


def memory_problem(
    node_comm: MPI.Intracomm,
    num_bytes: int,
    *,
    private: int = 0,
    memory_grows: bool = False,
    what: str = "the rings",
    way_out: str = "lower transport.ring_bytes",
) -> str | None:
    """Returns a message if the ranks of a node together want more memory than it has, else None.

    It is asked before MPI is: a rank whose own allocation fails leaves the others hanging in the collective
    call, and shared memory is a sparse file, whose allocation succeeds and whose use ends in SIGBUS.

    private: bytes that this rank wants besides, outside its windows.
    memory_grows: more memory than is available now is no problem; the size of the sparse file's file system
    is fixed, and stays one.
    what, way_out: for the message, what the memory is for, and how to need less.
    Collective over `node_comm`, the ranks of a node.
    """
    # Not allreduce: for a communicator's first one of objects mpi4py makes another communicator, and lets no
    # thread run meanwhile, the watchdog neither.
    found = node_comm.allgather((num_bytes, private))
    wanted = sum(shared for shared, _ in found)
    in_all = wanted + sum(own for _, own in found)
    text = f"{what} of the {node_comm.size} ranks on {socket.gethostname()} need"
    available = available_memory()
    if available is not None and in_all > available:
        lack = f"{text} {in_all} bytes of memory, of which {available} are available"
        if not memory_grows:
            return (
                f"{lack}; {way_out}, or set transport.memory_grows = true on a machine that gets more memory "
                "as it is used"
            )
        if node_comm.rank == 0:
            LOG.warning("%s now; transport.memory_grows says that more will come", lack)
    if node_comm.size == 1 or not os.path.isdir(SHARED_MEMORY):
        return None
    free, size = shared_memory_room()
    if wanted <= free:
        return None
    enough = -(-(size - free + wanted) // (1 << 30))  # GiB
    return (
        f"{text} {wanted} bytes in {SHARED_MEMORY}, which has {free} free of {size}; "
        f"{way_out} or enlarge it (containers: --shm-size={enough}g; else mount -o "
        f"remount,size={enough}g {SHARED_MEMORY})"
    )


def _allocation_problem(num_bytes: int, shared: bool, error: Exception) -> str:
    place = "memory registered for the network"
    if shared and os.path.isdir(SHARED_MEMORY):
        free, size = shared_memory_room()
        place = f"{SHARED_MEMORY} ({free} free of {size})"
    return (
        f"MPI could not allocate a window of {num_bytes} bytes in {place} on {socket.gethostname()}: "
        f"{str(error).splitlines()[0]}; lower transport.ring_bytes; "
        "Open MPI 4.1 across nodes: set OMPI_MCA_osc=ucx; Open MPI 5: set OMPI_MCA_osc=^ucx"
    )
