"""Defines what a table in a checkpoint says about itself, and in which of its buckets a key lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from persia_hpc.arrays import Array
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
