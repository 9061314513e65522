"""One server's rows into HDF5, bucket by bucket, while training goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc._native import Table
from persia_hpc.errors import PersiaError
from persia_hpc.layout import TableLayout

from . import files
from .ahead import one_ahead

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

Array = npt.NDArray[Any]
PART_BYTES = 8 << 20  # so much is copied and written at a time
CHUNK_BYTES = 1 << 20
NICE = 10  # how far the writing thread steps back behind training


class ShardWriter:
    """A server's part of a checkpoint: the mark is made here and now, the file is written by a thread."""

    def __init__(self, server: ParameterServer, path: Path, base_step: int = 0):
        """`base_step`: of the full checkpoint that this one holds the changes since; 0 if this is full.

        No gradient may be in flight.
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
        self._thread: threading.Thread | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of old rows that are kept aside at the moment."""
        return sum(table.snapshot_bytes for _, table, _, _ in self._parts)

    def start(self) -> None:
        """Writes in a thread."""
        self._thread = threading.Thread(target=self._run, name="persia-checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended; raises what it ended with."""
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
        """Writes the file, fsyncs it and notes its checksum; PersiaError if that can't be."""
        try:
            options = {"libver": ("v110", "v110"), "rdcc_nbytes": 4 * CHUNK_BYTES, "locking": False}
            with h5py.File(self.path, "w", **options) as file:
                for layout, table, buckets, since in self._parts:
                    _write_table(file, layout, table, buckets, since)
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


def _write_table(file: h5py.File, layout: TableLayout, table: Table, buckets: range, since: int) -> None:
    group = file.create_group(layout.name)
    group.attrs.update(
        dim=layout.dim,
        num_buckets=layout.num_buckets,
        optimizer=layout.config.optimizer["name"],
        eviction=layout.config.eviction,
        complete=since == 0,
    )
    decided: list[dict[str, Array]] = []
    for rows, decides in one_ahead(_copied(table, buckets, since)):
        for name, array in rows.items():
            _append(group, name, array)
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


def _copied(table: Table, buckets: range, since: int) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """What `snapshot_buckets` says, of some buckets at a time."""
    at_once = max(1, PART_BYTES * len(buckets) // max(1, table.num_rows * table.row_bytes))
    for first in range(buckets.start, buckets.stop, at_once):
        yield table.snapshot_buckets(first, min(first + at_once, buckets.stop), since)


def _append(group: h5py.Group, name: str, data: Array) -> None:
    """Adds an [n, …] array to a dataset that grows."""
    width = data.shape[1:]
    if 0 in width:  # the state of an optimizer that has none: can't be in chunks
        return
    if name not in group:
        row_bytes = int(np.prod(width, dtype=np.int64)) * data.itemsize
        chunks = (max(1, CHUNK_BYTES // row_bytes), *width)
        group.create_dataset(name, (0, *width), data.dtype, maxshape=(None, *width), chunks=chunks)
    dataset = group[name]
    at = dataset.shape[0]
    dataset.resize(at + len(data), axis=0)
    if data.size:
        dataset[at:] = data
