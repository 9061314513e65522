"""Opens a server's part of a checkpoint for reading."""

from __future__ import annotations

from pathlib import Path

import h5py

from persia_hpc.errors import DataError
from persia_hpc.samples.containment import StorageError
from persia_hpc.samples.names import open_to_read


def open_shard(path: Path) -> h5py.File:
    """Opens a server's part of a checkpoint read-only.

    Raises OSError if it can't be opened, DataError if its data is elsewhere or was never written.
    """
    try:
        return open_to_read(str(path), written=True)
    except StorageError as error:
        raise DataError(f"{error.problem}; use an older checkpoint") from error
