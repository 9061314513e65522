"""Opens the tables of a checkpoint: what they say about themselves, and in which bucket a key lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.errors import DataError
from persia_hpc.samples.attributes import is_count
from persia_hpc.samples.containment import StorageError
from persia_hpc.samples.names import open_to_read
from persia_hpc.table_layout import TableLayout


def table_attributes(layout: TableLayout) -> dict[str, Any]:
    """Returns the attributes of a table's HDF5 group that must be those of the table that reads it."""
    return {
        "dim": layout.dim,
        "num_buckets": layout.num_buckets,
        "optimizer": layout.config.optimizer["name"],
        "eviction": layout.config.eviction,
    }


def bucket_of(keys: Array, num_buckets: int) -> Array:
    """Returns the bucket of each key: its highest bits.

    num_buckets: a power of two.
    Shapes: keys uint64 [n]; returns int64 [n].
    """
    shift = np.uint64(64 - (num_buckets.bit_length() - 1))
    # Two shifts, because one by 64 would be undefined.
    return ((keys >> np.uint64(1)) >> (shift - np.uint64(1))).astype(np.int64)


_MOST = 1 << 32  # buckets of a table, and numbers of a row: far beyond any
_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "dim": lambda value: is_count(value) and 0 < value < _MOST,
    "num_buckets": lambda value: is_count(value) and 0 < value < _MOST,
    "optimizer": lambda value: isinstance(value, str),
    "eviction": lambda value: isinstance(value, str),
    "complete": lambda value: isinstance(value, np.bool_),
}


def open_shard(path: Path) -> h5py.File:
    """Opens a server's part of a checkpoint read-only.

    Raises OSError if it can't be opened, DataError if its data is elsewhere or was never written, or if it
    holds something else than tables.
    """
    try:
        shard = open_to_read(str(path), written=True)
    except StorageError as error:
        raise DataError(f"{error.problem}; use an older checkpoint") from error
    try:
        _check_tables(shard)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        shard.close()
        raise DataError(f"{path}: {' '.join(str(error).split())}; use an older checkpoint") from error
    return shard


def _check_tables(parent: h5py.Group) -> None:
    """Checks the types of all tables' attributes and columns, but not whether any are missing.

    A table whose name has a "/" is a group below a group.
    Raises ValueError for the first that is wrong.
    """
    for name, entry in parent.items():
        if isinstance(entry, h5py.Group) and (parent.name == "/" or "dim" in entry.attrs):
            for attribute, fits in _ATTRIBUTES.items():
                value = entry.attrs.get(attribute)
                if value is not None and not fits(value):
                    raise ValueError(f"{entry.name}: got {attribute} {value!a}, which it can't be")
            _check_tables(entry)
        elif parent.name == "/":
            raise ValueError(f"/{name}: got something else than the group of a table")
        elif not isinstance(entry, h5py.Dataset) or entry.dtype.kind not in "iuf":
            raise ValueError(f"{parent.name}: got something else than numbers for column {name!r}")
