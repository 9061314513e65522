"""Waits without keeping a core busy, and makes MPI progress for ranks that compute."""

from __future__ import annotations

import os
import threading
import time
from itertools import chain

from mpi4py import MPI

from persia_hpc._native import Watch
from persia_hpc.errors import UserError
from persia_hpc.transport.plane import Plane

SPIN_SECONDS = 50e-6  # about what falling asleep and being woken costs
SLEEP_SECONDS = 50e-3  # peers on this node ring a bell: a sleep ends when there are news
# Peers on other nodes ring no bell: yields, then sleeps of this part of the time spent idle so far.
YIELD_PASSES = 1000
REMOTE_SLEEP_PART = 0.02
REMOTE_SLEEP_SECONDS = (100e-6, 10e-3)  # at least and at most
PROBES_PER_SLEEP = (
    16  # a rendezvous takes several steps; one probe per wake would spread them over milliseconds
)
PROGRESS_PERIOD_SECONDS = 1e-3


def default_spin(num_ranks: int) -> float:
    """Returns the seconds to spin: 0 unless each of the `num_ranks` ranks on a node has a core of its own."""
    return SPIN_SECONDS if num_ranks <= len(os.sched_getaffinity(0)) else 0.0


class Waiter:
    """Waits, for one polling loop, for news in the rings of `planes`: spins, then sleeps until it is woken.

    spin: seconds of spinning before the first sleep; None decides by the number of ranks and of cores.
    """

    def __init__(self, *planes: Plane, spin: float | None = None) -> None:
        producers, consumers, bells = zip(*(plane.waited_for for plane in planes), strict=True)
        self._watch = Watch(*(list(chain.from_iterable(ends)) for ends in (producers, consumers, bells)))
        self._remote = [plane for plane in planes if plane.remote]
        self._spin = default_spin(MPI.COMM_WORLD.Get_size()) if spin is None else spin
        self._passes = 0
        self._idle_since = 0.0

    def busy(self) -> None:
        """Notes that a pass of the loop did something: the next wait starts with spinning."""
        self._passes = 0

    def idle(self) -> None:
        """Waits, after a pass of the loop that did nothing, until there may be something to do."""
        passes = self._passes
        self._passes = passes + 1
        spin = self._spin if passes == 0 else 0.0
        if not self._remote:
            self._watch.wait(spin, SLEEP_SECONDS)
            return
        if passes < YIELD_PASSES:
            self._watch.wait(spin, 0.0)
            os.sched_yield()
            self._idle_since = 0.0
            self._fetch(1)
            return
        now = time.monotonic()
        if self._idle_since == 0.0:
            self._idle_since = now
        least, most = REMOTE_SLEEP_SECONDS
        self._watch.wait(0.0, min(max(least, REMOTE_SLEEP_PART * (now - self._idle_since)), most))
        self._fetch(PROBES_PER_SLEEP)

    def wake(self) -> None:
        """Ends the wait that this rank's loop is in or begins next; another thread calls it."""
        self._watch.wake()

    def _fetch(self, times: int) -> None:
        for _ in range(times):
            for plane in self._remote:
                if plane.fetch():
                    self._passes = 0  # what was asked for comes soon


class ProgressThread:
    """Fetches what came and calls into MPI each millisecond, for a rank that computes.

    Such a rank's main thread is outside MPI for long; its peers' one-sided operations would wait as long.

    Raises UserError without MPI_THREAD_MULTIPLE when it is made.
    """

    def __init__(self, plane: Plane) -> None:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UserError(
                f"MPI gives thread level {MPI.Query_thread()}, expected MPI_THREAD_MULTIPLE "
                f"({MPI.THREAD_MULTIPLE}): use an MPI built with it"
            )
        self._plane = plane
        self._running = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; does nothing if it runs."""
        if self._thread is None:
            self._running = True
            self._thread = threading.Thread(target=self._run, name="mpi-progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops and joins the thread; must come before MPI is finalised. Does nothing if it does not run."""
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
            for _ in range(PROBES_PER_SLEEP):
                if not self._plane.fetch():  # the plane may have no remote peers, and one-sided sums do
                    self._plane.comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
            time.sleep(PROGRESS_PERIOD_SECONDS)
