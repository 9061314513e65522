"""Removes a job's shared-memory files, which MPI libraries leave behind when a rank or launcher is killed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from .registry import RankRecord

_MAPPED = re.compile(r" (/dev/shm/.+)$", re.MULTILINE)


def mapped_files(pid: int) -> set[str]:
    """Returns the existing files in /dev/shm that a process maps; none if it is gone or not ours."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {path for path in _MAPPED.findall(maps) if not path.endswith(" (deleted)")}


class SharedMemory:
    """Notes the files that a job's local ranks map, while they live."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._seen: tuple[int, int] | None = None
        self._next_look = 0.0
        self._again = False

    def look(self, ranks: Collection[RankRecord], *, at_once: bool = False) -> None:
        """Reads what the ranks map, if files have come or gone since the last look; else almost free.

        Files are made when the windows are, at any time; and a rank maps a file a little after it is made.
        """
        now = time.monotonic()
        if not at_once and now < self._next_look:
            return
        with contextlib.suppress(OSError):
            state = (os.stat("/dev/shm").st_mtime_ns, len(ranks))
            if not at_once and state == self._seen and not self._again:
                return
            self._again = state != self._seen
            self._seen = state
        self._next_look = now + 0.1
        for rank in ranks:
            if rank.is_local:
                self._files |= mapped_files(rank.pid)

    def remove_leaked(self) -> list[str]:
        """Removes the files that are left; must be called after the ranks have ended."""
        return remove_leaked(self._files)


def remove_leaked(paths: Iterable[str]) -> list[str]:
    """Removes those of the files that still exist, belong to this user and that no living process maps."""
    candidates = set()
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.geteuid():
                candidates.add(path)
    if not candidates:
        return []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            candidates -= mapped_files(int(entry.name))
    removed = []
    for path in sorted(candidates):
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed.append(path)
    return removed
