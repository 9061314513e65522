"""Decides when an export's next version begins, also after one that couldn't be written."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

LONGEST_SECONDS = 60.0  # between two tries while nothing can be written, unless versions are rarer
FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


class NextVersion:
    """Says when the next version is due: so many seconds after the one before, later after one that failed.

    Each try that fails makes the time to the next twice as long. What it writes costs training some of its
    speed, so where the disk was full the next try also waits until more of it is free than when the last one
    began, for `LONGEST_SECONDS` at most, as there are quotas that the free space doesn't show.
    """

    def __init__(self, every_seconds: float, free_bytes: Callable[[], int]) -> None:
        """free_bytes: returns how much of the file system is free; 0 where that can't be asked."""
        self.failures = 0  # in a row
        self._every = every_seconds
        self._longest = max(LONGEST_SECONDS, every_seconds)
        self._free_bytes = free_bytes
        self._began = self._due = time.monotonic()
        self._room = 0  # bytes, free when the last try began
        self._full = False

    def is_due(self) -> bool:
        """Returns whether it is time for the next version."""
        now = time.monotonic()
        if now < self._due:
            return False
        if self._full and now < self._began + self._longest and self._free_bytes() <= self._room:
            self._due = now + self._every
            return False
        return True

    def make_due(self) -> None:
        """Makes the next version due at once, also where the disk was full."""
        self._due, self._full = time.monotonic(), False

    def begin(self) -> None:
        """Notes that a version, or a first base, begins."""
        self._began, self._room = time.monotonic(), self._free_bytes()
        self._due = self._began + self._every

    def succeed(self) -> None:
        """Notes that a version is whole."""
        self.failures, self._full = 0, False

    def fail(self, problem: str) -> None:
        """Notes that a version, or a first base, couldn't be written. problem: in the system's words."""
        self.failures += 1
        self._full = problem in FULL
        doubled = self._every * 2.0 ** min(self.failures, 64)  # a float has no room for a thousand
        self._due = time.monotonic() + min(self._longest, doubled)
