"""Files that outlive a crash."""

from __future__ import annotations

import os
from pathlib import Path


def sync_path(path: str | Path) -> None:
    """Makes what was written to a file durable, or, of a directory, what was created or renamed in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
