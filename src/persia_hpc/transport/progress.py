"""Waiting without burning the core, and progress for ranks that compute."""

from __future__ import annotations

import os
import threading
import time

from mpi4py import MPI

from persia_hpc.errors import UserError

SPIN_PASSES = 20
YIELD_PASSES = 1000
# (Idle for, then sleep), in seconds. The longest keep an idle rank well under 5 % of a core, and delay by 1 %
# at most what took so long to come.
SLEEPS = ((0.6, 5e-3), (0.2, 2e-3), (10e-3, 1e-3), (0.0, 100e-6))
PROBES_PER_SLEEP = (
    16  # a rendezvous takes several steps; one probe per wake would spread them over milliseconds
)
PROGRESS_PERIOD_SECONDS = 1e-3


def default_spin(num_ranks: int) -> int:
    """Spinning pays only if each of the `num_ranks` ranks on a node has a core of its own."""
    return SPIN_PASSES if num_ranks <= len(os.sched_getaffinity(0)) else 0


class Waiter:
    """Back-off of one polling loop: spin, yield, then the sleeps of SLEEPS.

    remote: a peer is on another node, so that waiting must also call MPI, on `comm` (default COMM_WORLD).
    spin: passes before the first yield; None decides by the ranks in the world and this node's cores.
    """

    def __init__(self, remote: bool, spin: int | None = None, comm: MPI.Comm | None = None) -> None:
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self._remote = remote
        self._spin = default_spin(MPI.COMM_WORLD.Get_size()) if spin is None else spin
        self._yield_until = self._spin + YIELD_PASSES
        self._passes = 0
        self._idle_since = 0.0

    def busy(self) -> None:
        """A pass of the loop did something: start over."""
        self._passes = 0

    def idle(self) -> None:
        """A pass of the loop did nothing: wait a little, the longer the longer it lasts."""
        passes = self._passes
        self._passes = passes + 1
        if passes < self._spin:
            pass
        elif passes < self._yield_until:
            os.sched_yield()
            self._idle_since = 0.0
        else:
            now = time.monotonic()
            if self._idle_since == 0.0:
                self._idle_since = now
            idle_seconds = now - self._idle_since
            time.sleep(next(sleep for after, sleep in SLEEPS if idle_seconds >= after))
            if self._remote:
                probe(self._comm, PROBES_PER_SLEEP)
            return
        if self._remote:
            probe(self._comm, 1)


class ProgressThread:
    """Calls into MPI each millisecond, so that peers' one-sided operations on a computing rank proceed.

    For ranks with remote peers whose main thread is outside MPI for long. Raises UserError without
    MPI_THREAD_MULTIPLE.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UserError(
                f"MPI gives thread level {MPI.Query_thread()}, expected MPI_THREAD_MULTIPLE "
                f"({MPI.THREAD_MULTIPLE}): use an MPI built with it"
            )
        self._comm = comm
        self._running = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; harmless if it runs."""
        if self._thread is None:
            self._running = True
            self._thread = threading.Thread(target=self._run, name="mpi-progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops and joins the thread; must come before MPI is finalised. Harmless if it does not run."""
        self._running = False
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> ProgressThread:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while self._running:
            probe(self._comm, PROBES_PER_SLEEP)
            time.sleep(PROGRESS_PERIOD_SECONDS)


def probe(comm: MPI.Comm, times: int) -> None:
    """Calls Iprobe, which makes MPI handle what came in; receives nothing."""
    for _ in range(times):
        comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
