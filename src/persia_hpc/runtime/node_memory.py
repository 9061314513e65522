"""Says how much memory this node has, for those who ask before MPI does."""

from __future__ import annotations

import os
import sys

SHARED_MEMORY = "/dev/shm"
UNLIMITED = sys.maxsize  # bytes of a tmpfs without a size of its own


def shared_memory_room() -> tuple[int, int]:
    """Returns the free bytes of this node's shared memory and its size; 0 where there is none.

    Both are UNLIMITED for a tmpfs that was mounted without a limit, which the kernel tells as no blocks.
    """
    if not os.path.isdir(SHARED_MEMORY):
        return 0, 0
    status = os.statvfs(SHARED_MEMORY)
    if not status.f_blocks:
        return UNLIMITED, UNLIMITED
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def available_memory() -> int | None:
    """Returns the bytes that the kernel can give without swapping, None if it doesn't say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
