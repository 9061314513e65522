"""Says who waits for whom when nothing has moved for long."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

LOG = logging.getLogger("persia_hpc")


class Watchdog:
    """For one rank's loop: `moved` and `idle` are called by its passes, a stall is reported once.

    describe: what this rank waits for, or None when it waits for nothing that anybody owes it.
    """

    def __init__(self, rank: str, seconds: float, describe: Callable[[], str | None]):
        self._rank = rank
        self._seconds = seconds
        self._describe = describe
        self._since: float | None = None
        self._said = False

    def moved(self) -> None:
        """Something happened."""
        if self._said:
            LOG.info("goes on")
        self._since, self._said = None, False

    def idle(self) -> None:
        """Nothing happened in a pass of the loop."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif not self._said and now - self._since > self._seconds:
            self._said = True
            text = self._describe()
            if text is not None:
                message = f"{self._rank} has waited {self._seconds:.0f} s for {text}"
                LOG.warning(message)
                print(f"persia-hpc: {message}", file=sys.stderr, flush=True)
