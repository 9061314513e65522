"""Reports long waits, and ends the job when nothing has moved for too long."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from persia_hpc.config.types import TransportConfig
from persia_hpc.errors import PersiaError
from persia_hpc.printable import say

LOG = logging.getLogger("persia_hpc")
ROUND_SECONDS = (0.02, 1.0)  # at least and at most between two looks
ENDED_SECONDS = 5.0  # a job whose failure is on record, and in which nothing moves, may still end by itself
IN_A_CALL = "a call to return, of MPI or of data.transform"


class Wait(NamedTuple):
    """Says what a rank waits for: None if no other rank is expected to act. A `patient` wait has no limit."""

    what: str | None = None
    patient: bool = False


class Watchdog:
    """Watches one rank's loop, which calls `moved` and `idle`, from a thread of its own.

    It is a thread because MPI's own calls don't return over a cut link. Time is counted in the thread's
    rounds: a process that was stopped, or a job that was suspended, hasn't waited meanwhile.
    """

    def __init__(
        self,
        rank: str,
        config: TransportConfig,
        failure: Path | None = None,
        fail: Callable[[PersiaError], object] | None = None,
    ):
        """Prepares the watch, which `start` begins.

        failure: the file that says that the job has failed, seen by all ranks. fail: ends this rank and the
        job; called by the thread. Without it no wait is ever given up.
        """
        self._describe: Callable[[], Wait] = Wait
        self._rank = rank.replace("_", " ")
        self._stall_seconds = config.stall_seconds
        self._give_up_seconds = config.give_up_seconds if fail is not None else 0.0
        self._failure = failure
        self._fail = fail
        self._waiting = False
        self._moves = 0
        self._passes = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, describe: Callable[[], Wait] = Wait) -> None:
        """Starts to watch this rank. If it is watched already, only `describe` changes.

        describe: says what the rank waits for; called by the thread when nothing has moved for long.
        """
        self._describe = describe
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._run, name="persia-watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops watching."""
        self._closing.set()
        self._thread = None

    def moved(self) -> None:
        """Notes that a pass of the loop did something."""
        self._moves += 1
        self._waiting = True

    def idle(self) -> None:
        """Notes that a pass of the loop did nothing."""
        self._passes += 1
        self._waiting = True

    @contextlib.contextmanager
    def waits_for(self, what: str | None, *, patient: bool = False) -> Iterator[None]:
        """Notes a wait, until the context ends, of a rank that doesn't wait all the time. See `Wait`."""
        wait, outer = Wait(what, patient), (self._describe, self._waiting)  # waits may nest
        self._describe = lambda: wait
        self._moves += 1
        self._waiting = True
        try:
            yield
        finally:
            self._moves += 1
            self._describe, self._waiting = outer

    def _run(self) -> None:
        least, most = ROUND_SECONDS
        limits = [seconds for seconds in (self._stall_seconds, self._give_up_seconds) if seconds > 0]
        period = min(max(least, min(limits) / 10), most)
        stalled = still = ended = 0.0  # seconds: a wait; without any sign of life; since the job has failed
        said, moves, passes = False, -1, -1
        last = time.monotonic()
        while not self._closing.wait(period):
            now = time.monotonic()
            gone, last = min(now - last, 2 * period), now
            if self._moves != moves:
                if said:
                    LOG.info("goes on")
                stalled = still = ended = 0.0
                said, moves, passes = False, self._moves, self._passes
                continue
            still = 0.0 if self._passes != passes else still + gone
            stalled, passes = stalled + gone if self._waiting else 0.0, self._passes
            say, give_up = stalled > self._stall_seconds and not said, 0 < self._give_up_seconds < stalled
            what, patient = self._current_wait(still) if say or give_up else Wait()
            if say:
                said = True
                self._report_wait(what, stalled)
            if give_up and not patient:
                self._give_up(what, stalled)
            ended = ended + gone if self._job_has_failed() else 0.0
            if ended > ENDED_SECONDS and self._fail is not None:
                self._fail(PersiaError(f"{self._rank}: the job has failed, and nobody has ended this rank"))

    def _current_wait(self, still: float) -> Wait:
        try:
            what, patient = self._describe()
        except RuntimeError:  # the loop has changed what was being looked at: it isn't stuck
            return Wait()
        return Wait(what or (IN_A_CALL if still > self._stall_seconds else None), patient)

    def _report_wait(self, what: str | None, seconds: float) -> None:
        if what is not None:
            message = f"{self._rank} has waited {seconds:.0f} s for {what}"
            LOG.warning(message)
            say(message)

    def _give_up(self, what: str | None, seconds: float) -> None:
        if what is not None and self._fail is not None:
            self._fail(
                PersiaError(
                    f"{self._rank} has waited {seconds:.0f} s for {what}; gave up "
                    "(transport.give_up_seconds); go on with --resume"
                )
            )

    def _job_has_failed(self) -> bool:
        try:
            return self._failure is not None and self._failure.exists()
        except OSError:
            return False
