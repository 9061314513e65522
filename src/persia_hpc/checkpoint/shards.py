"""Writes one server's rows into an HDF5 file, bucket by bucket, while training continues."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from persia_hpc._native import Table, row_bytes
from persia_hpc.arrays import Array
from persia_hpc.durable import ErrorKeeper
from persia_hpc.errors import PersiaError
from persia_hpc.table_layout import TableLayout

from . import files
from .ahead import one_ahead
from .tables import make_group, table_attributes

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

PART_BYTES = 8 << 20  # so much is copied and written at a time
CHUNK_BYTES = 1 << 20
NICE = 10  # how far the writing thread steps back behind training


class ShardWriter:
    """Writes a server's part of a checkpoint in a thread, while training continues.

    The rows are written as they are when the writer is made; the tables set old rows aside for it.
    """

    def __init__(self, server: ParameterServer, path: Path, base_step: int = 0):
        """Marks the rows as they are now. No gradient may be in flight.

        base_step: step of the full checkpoint whose changes this one holds; 0 if this one is full.
        """
        self.path = path
        self.error: BaseException | None = None
        self.seconds = 0.0  # from the mark to the end of writing
        self._began = time.perf_counter()
        self._counters = {
            "ledger": dict(vars(server.ledger)),
            "staleness": {str(k): v for k, v in server.clock.histogram.items()},
        }
        self._parts = [
            (layout, table, buckets, base_step if table.can_be_incremental else 0)
            for layout, table, buckets in zip(
                server.layout.tables, server.tables, server.buckets, strict=True
            )
            if table is not None
        ]
        for _, table, _, _ in self._parts:
            table.begin_snapshot(base_step == 0)
        self._num_rows = [table.num_rows for _, table, _, _ in self._parts]
        self._thread: threading.Thread | None = None

    @property
    def kept_bytes(self) -> int:
        """Returns the bytes of old rows that are set aside at the moment."""
        return sum(table.snapshot_bytes for _, table, _, _ in self._parts)

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread = threading.Thread(target=self._run, name="persia-checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Returns whether the thread has ended; raises the error with which it ended, if any."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if self.error is not None:
            raise self.error
        return True

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # where cores are short, training goes first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self.write()
        except BaseException as error:
            self.error = error

    def write(self) -> None:
        """Writes the file, fsyncs it and notes its checksum.

        Raises PersiaError if that can't be done.
        """
        try:
            options = {"libver": ("v110", "v110"), "rdcc_nbytes": 4 * CHUNK_BYTES}
            needed = sum(
                _file_bytes(layout, table, buckets, table.rows_since(since) if since else num_rows)
                for (layout, table, buckets, since), num_rows in zip(self._parts, self._num_rows, strict=True)
            )
            with ErrorKeeper(self.path) as target, h5py.File(target, "w", **options) as file:
                files.reserve_space(self.path, needed)  # a full disk is seen before hours of writing
                for (layout, table, buckets, since), num_rows in zip(
                    self._parts, self._num_rows, strict=True
                ):
                    _write_table(file, layout, table, buckets, since, num_rows)
                    target.check()
            target.check()
            os.truncate(self.path, self.path.stat().st_size)  # gives back what was reserved beyond
            files.finish_part(self.path, **self._counters)
            self.seconds = time.perf_counter() - self._began
        except (OSError, RuntimeError) as error:  # h5py may say either for a full disk
            raise self._failed(error) from error
        finally:
            for _, table, _, _ in self._parts:
                table.end_snapshot()

    def _failed(self, error: Exception) -> PersiaError:
        if not isinstance(error, OSError):
            error = OSError(None, str(error))
        return files.writing_failed(self.path, error)


def _file_bytes(layout: TableLayout, table: Table, buckets: range, num_rows: int) -> int:
    """Returns an estimate, rather too high, of the bytes that a table takes in the file."""
    stored = row_bytes(str(layout.config.optimizer["name"]), layout.dim)  # in files all is float32
    row = 8 + stored.weights + stored.state + 4  # with its key and stamp
    sightings = len(buckets) * table.sightings_per_bucket
    return (
        int(1.02 * num_rows * row) + 32 * len(buckets) + sightings + 8 * len(table.removed_keys()) + (1 << 15)
    )


def _write_table(
    file: h5py.File, layout: TableLayout, table: Table, buckets: range, since: int, num_rows: int
) -> None:
    group = make_group(file, layout.name)
    group.attrs.update(table_attributes(layout), complete=since == 0)
    at = 0
    decided: list[dict[str, Array]] = []
    for rows, decides in one_ahead(_copied(table, buckets, since)):
        _check_finite(layout.name, rows)
        for name, array in rows.items():
            _append(group, name, array, at, None if since else num_rows)
        at += len(rows["keys"])
        decided.append(decides)
    every = {name: np.concatenate([decides[name] for decides in decided]) for name in decided[0]}
    if "state" not in group:
        group["state"] = np.empty((int(every["counts"].sum()), 0), np.float32)
    group["buckets"] = np.array(buckets, np.uint32)
    group["bucket_offsets"] = np.cumsum([0, *every["counts"]], dtype=np.uint64)
    group["ages"] = every["ages"]
    if every["sightings"].size:
        group["counted"] = every["counted"]
        group["sightings"] = every["sightings"]
    if since:
        group["removed"] = np.sort(table.removed_keys())


def _check_finite(table: str, rows: dict[str, Array]) -> None:
    """Checks the weights of rows; the sum is cheap, and tells unless finite values overflow it.

    Raises PersiaError if any isn't finite: nobody wants such a checkpoint to be the newest.
    """
    weights = rows["rows"]
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(weights.sum()):
            return
    bad = np.flatnonzero(~np.isfinite(weights).all(axis=1))
    if len(bad):
        raise PersiaError(
            f"table {table}: {len(bad):,} of {len(weights):,} rows have NaN or infinity (the first has the "
            f"key {int(rows['keys'][bad[0]])}): training has diverged, and the checkpoint isn't finished. "
            "Those before are as they were; mend the data or the loss, lower the learning rate, or set the "
            "table's clip_norm or value_bound"
        )


def _copied(table: Table, buckets: range, since: int) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yields the results of `snapshot_buckets` for a few buckets at a time."""
    at_once = max(1, PART_BYTES * len(buckets) // max(1, table.num_rows * table.row_bytes))
    for first in range(buckets.start, buckets.stop, at_once):
        yield table.snapshot_buckets(first, min(first + at_once, buckets.stop), since)


def _append(group: h5py.Group, name: str, data: Array, at: int, num_rows: int | None) -> None:
    """Puts an array into a dataset, beginning at row `at`.

    num_rows: of the whole dataset; None if it grows with each call.
    Shapes: data [n, ...].
    """
    width = data.shape[1:]
    if 0 in width:  # the state of an optimizer that has none
        return
    if name not in group and num_rows is not None:
        group.create_dataset(name, (num_rows, *width), data.dtype)
    elif name not in group:
        entry_bytes = int(np.prod(width, dtype=np.int64)) * data.itemsize
        chunks = (max(1, min(CHUNK_BYTES // entry_bytes, len(data))), *width)
        group.create_dataset(name, (0, *width), data.dtype, maxshape=(None, *width), chunks=chunks)
    dataset = group[name]
    if num_rows is None:
        dataset.resize(at + len(data), axis=0)
    if data.size:
        dataset[at : at + len(data)] = data
