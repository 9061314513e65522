"""One server's rows into HDF5, bucket by bucket, while training goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc._native import Table
from persia_hpc.errors import PersiaError
from persia_hpc.files import sync_path
from persia_hpc.layout import TableLayout

from . import files

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

Array = npt.NDArray[Any]
FLUSH_BYTES = 8 << 20  # so much is gathered before it is written
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
            with h5py.File(self.path, "w", libver=("v110", "v110"), rdcc_nbytes=4 * CHUNK_BYTES) as file:
                for layout, table, buckets, since in self._parts:
                    _write_table(file, layout, table, buckets, since)
            sync_path(self.path)
            self.seconds = time.perf_counter() - self._began
            files.note_part(self.path, **self._counters, seconds=round(self.seconds, 3))
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
    columns = _Columns(group)
    counts, ages, counted, sightings = [], [], [], []
    for bucket in buckets:
        rows, decides = table.snapshot_bucket(bucket, since)
        columns.add(rows)
        counts.append(len(rows["keys"]))
        ages.append(decides["age"])
        counted.append(decides["counted"])
        if len(decides["sightings"]):
            sightings.append(decides["sightings"])
    columns.flush()
    if "state" not in group:
        group["state"] = np.empty((sum(counts), 0), np.float32)
    group["buckets"] = np.array(buckets, np.uint32)
    group["bucket_offsets"] = np.cumsum([0, *counts], dtype=np.uint64)
    group["ages"] = np.array(ages, np.uint32)
    if sightings:
        group["counted"] = np.array(counted, np.uint32)
        group.create_dataset("sightings", data=np.stack(sightings), chunks=True, fletcher32=True)
    if since:
        removed = np.sort(table.removed_keys())
        group.create_dataset("removed", data=removed, chunks=len(removed) > 0 or None)


class _Columns:
    """Datasets [n, …] that grow as buckets come."""

    def __init__(self, group: h5py.Group):
        self._group = group
        self._waiting: list[dict[str, Array]] = []
        self._waiting_bytes = 0

    def add(self, rows: dict[str, Array]) -> None:
        self._waiting.append(rows)
        self._waiting_bytes += sum(array.nbytes for array in rows.values())
        if self._waiting_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        for name in self._waiting[0] if self._waiting else ():
            if 0 in self._waiting[0][name].shape[1:]:  # state of an optimizer without; can't be in chunks
                continue
            data = np.concatenate([rows[name] for rows in self._waiting])
            if name not in self._group:
                self._create(name, data)
            dataset = self._group[name]
            at = dataset.shape[0]
            dataset.resize(at + len(data), axis=0)
            if data.size:
                dataset[at:] = data
        self._waiting, self._waiting_bytes = [], 0

    def _create(self, name: str, like: Array) -> None:
        width = like.shape[1:]
        row_bytes = max(1, int(np.prod(width, dtype=np.int64)) * like.itemsize)
        chunks = (max(1, CHUNK_BYTES // row_bytes), *width)
        self._group.create_dataset(
            name, (0, *width), like.dtype, maxshape=(None, *width), chunks=chunks, fletcher32=True
        )
