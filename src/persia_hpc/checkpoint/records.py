"""Defines the records in which files that checkpoints share hold rows: those of a table's disk tier.

As a tier has them a server takes them where they are when it starts, see adopt.py. A record is key, stamp, a
checksum of the whole, weights, state and, with some optimizers, the number of updates.
"""

from __future__ import annotations

from collections.abc import Iterable

import h5py
import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array

RECORDS = "records"  # the dataset that stands in for a table's columns
_KINDS = {"keys": "u8", "stamps": "u4", "checksums": "u4", "rows": "f4", "state": "f4", "steps": "u4"}


def record_type(table: Table) -> np.dtype[np.void]:
    """Returns the type of the records of a table, whose `record_bytes` must not be 0."""
    state, steps = 16 + 4 * table.dim, 16 + 4 * (table.dim + table.state_width)
    found = {"keys": (0, 0), "stamps": (8, 0), "checksums": (12, 0), "rows": (16, table.dim)}
    found |= {"state": (state, table.state_width)} if table.state_width else {}
    found |= {"steps": (steps, 0)} if table.has_steps else {}
    return np.dtype(
        {
            "names": list(found),
            "formats": [
                (f"<{_KINDS[name]}", (width,)) if width else f"<{_KINDS[name]}"
                for name, (_, width) in found.items()
            ],
            "offsets": [offset for offset, _ in found.values()],
            "itemsize": table.record_bytes,
        }
    )


def widths_of(records: h5py.Dataset) -> dict[str, tuple[int, ...]]:
    """Returns the shape of a record's entry in each column."""
    fields = records.dtype.fields
    widths = {name: kind.shape for name, (kind, *_) in fields.items() if name != "checksums"}
    return {"state": (0,)} | widths


def problem_of(records: h5py.Dataset, num_rows: int) -> str:
    """Returns what is wrong with the type or number of records; '' if nothing is."""
    fields = records.dtype.fields or {}
    kinds = {name: kind.base.str[1:] for name, (kind, *_) in fields.items()}
    vectors = {name for name, (kind, *_) in fields.items() if len(kind.shape) == 1}
    sound = _KINDS.keys() - kinds.keys() <= {"state", "steps"} and kinds.items() <= _KINDS.items()
    if not sound or vectors != fields.keys() & {"rows", "state"}:
        return f"records have the type {records.dtype}"
    if records.shape != (num_rows,):
        return f"{RECORDS} has shape {records.shape}, expected {num_rows} entries"
    return ""


def columns_of(records: Array, names: Iterable[str]) -> dict[str, Array]:
    """Returns those columns of records that they have."""
    held = [name for name in names if name in (records.dtype.names or ())]
    # h5py marks the type of vectors as little-endian, a copy keeps that, and native code doesn't take it.
    columns = {name: records[name].astype(_KINDS[name], "C") for name in held}
    if "state" in names and "state" not in columns:
        columns["state"] = np.empty((len(records), 0), np.float32)
    return columns
