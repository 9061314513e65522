"""Runs the polling loop that all three roles share; it never waits for a single peer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.telemetry import Telemetry
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.transport.progress import Waiter


@dataclass(frozen=True)
class RankContext:
    """Holds what each rank's loop needs besides its rings."""

    waiter: Waiter
    watchdog: Watchdog
    stop: StopSignals
    telemetry: Telemetry


class PollingLoop:
    """Polls until something is done; sleeps between passes that move nothing, and tells the watchdog."""

    def __init__(
        self, context: RankContext, poll: Callable[[], bool], forward_signal: Callable[[int], None]
    ) -> None:
        """Prepares the loop.

        poll: makes one pass over the role's rings and returns whether anything moved; must not wait.
        forward_signal: tells trainer 0 of a signal that asks the run to stop; called for the first one only.
        """
        self._waiter = context.waiter
        self._watchdog = context.watchdog
        self._stop = context.stop
        self._poll = poll
        self._forward_signal = forward_signal
        self._signal_seen = False

    def poll(self) -> bool:
        """Makes one pass without waiting; returns whether anything moved."""
        if self._stop.number is not None and not self._signal_seen:
            self._signal_seen = True
            self._forward_signal(self._stop.number)
        return self._poll()

    def run(self, done: Callable[[], bool], idled: Callable[[float], object] | None = None) -> None:
        """Polls until `done`.

        idled: called after each pass that has waited, with the time at which the pass began.
        """
        waiter, watchdog = self._waiter, self._watchdog
        while not done():
            begin = time.perf_counter()
            if self.poll():
                waiter.busy()
                watchdog.moved()
                continue
            if done():  # the end of a ring is nothing that moves, and nothing more may come after it
                return
            watchdog.idle()
            waiter.idle()
            if idled is not None:
                idled(begin)
