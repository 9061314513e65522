"""Writes one server's rows into an HDF5 file, bucket by bucket, while training continues."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from .cold import ColdFile, ColdTable
from .names import cold_name
from .parts import TOKEN, full_mask, write_mask
from .records import RECORDS, record_type
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
        self._cold, self._server_rank = server.cold_files, server.server_rank
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
            with _writing(self.path):
                self._write()
            self.seconds = time.perf_counter() - self._began
        finally:
            for _, table, _, _ in self._parts:
                table.end_snapshot()

    def _write(self) -> None:
        on_disk = any(self._is_shared(table, since) for _, table, _, since in self._parts)
        # Those of all tables: the next full checkpoint takes over the files of the last that has any.
        tables = [table for _, table, _, _ in self._parts if table.has_disk] if on_disk else []
        known, number = self._cold.take_over(self.path.parent, tables)
        path = self.path.parent / cold_name(self._server_rank, number)
        path.unlink(missing_ok=True)
        new: dict[str, Array] = {}  # of tables with rows in that file: where those of each bucket begin
        token = secrets.randbits(63)
        with ExitStack() as made:
            file = made.enter_context(_NewFile(self.path, self._bytes(of_disk=False)))
            cold = made.enter_context(_NewFile(path, self._bytes(of_disk=True))) if on_disk else None
            if cold is not None:
                cold.tables.attrs[TOKEN] = token
            for (layout, table, buckets, since), num_rows in zip(self._parts, self._num_rows, strict=True):
                if cold is not None and self._is_shared(table, since):
                    new[layout.name] = _write_cold_table(file, (cold, number), layout, table, buckets, known)
                    cold.check()
                else:
                    _write_table(file, layout, table, buckets, since, num_rows)
                file.check()
        if any(offsets[-1] for offsets in new.values()):
            with _writing(path):
                known.append(ColdFile(number, path, files.finish_part(path), new, token))
        else:
            path.unlink(missing_ok=True)
        files.finish_part(self.path, **self._counters)
        if on_disk:
            self._cold.written(known)

    @staticmethod
    def _is_shared(table: Table, since: int) -> bool:
        """Returns whether the table's rows on disk go into files that other checkpoints have too."""
        return table.has_disk and not since

    def _bytes(self, *, of_disk: bool) -> int:
        """Returns an estimate of the bytes of the file with rows that aren't on disk, or of the new one."""
        total = 0
        for (layout, table, buckets, since), num_rows in zip(self._parts, self._num_rows, strict=True):
            rows = table.rows_since(since) if since else num_rows
            if self._is_shared(table, since):
                cold = table.cold_rows
                rows = cold - sum(table.copied_rows().values()) if of_disk else num_rows - cold
            elif of_disk:
                continue
            total += _file_bytes(layout, table, buckets, max(0, rows))
        return total


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Lets what goes wrong while a file is written be an error that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py may say either for a full disk
        told = error if isinstance(error, OSError) else OSError(None, str(error))
        raise files.writing_failed(path, told) from error


def _file_bytes(layout: TableLayout, table: Table, buckets: range, num_rows: int) -> int:
    """Returns an estimate, rather too high, of the bytes that a table takes in the file."""
    stored = row_bytes(str(layout.config.optimizer["name"]), layout.dim)  # in files all is float32
    row = max(8 + stored.weights + stored.state + 4, table.record_bytes)  # with its key and stamp
    sightings = len(buckets) * table.sightings_per_bucket
    return (
        int(1.02 * num_rows * row) + 32 * len(buckets) + sightings + 8 * len(table.removed_keys()) + (1 << 15)
    )


class _NewFile:
    """Is an HDF5 file that is written; leaving it, as a context manager, completes it."""

    def __init__(self, path: Path, num_bytes: int):
        """Makes a file for so many bytes: a full disk is seen before hours of writing.

        Raises PersiaError if it can't be made.
        """
        self.path = path
        with _writing(path), ExitStack() as stack:
            self._target = stack.enter_context(ErrorKeeper(path))
            options = {"libver": ("v110", "v110"), "rdcc_nbytes": 4 * CHUNK_BYTES}
            self.tables = stack.enter_context(h5py.File(self._target, "w", **options))
            files.reserve_space(path, num_bytes)
            self._stack = stack.pop_all()

    def check(self) -> None:
        """Raises PersiaError if a write has failed."""
        with _writing(self.path):
            self._target.check()

    def __enter__(self) -> _NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stack.close()
        if kind is None:
            with _writing(self.path):
                self._target.check()
                os.truncate(self.path, self.path.stat().st_size)  # gives back what was reserved beyond


class _Columns:
    """Writes the rows of some buckets of a table into a file, some whole buckets at a time."""

    def __init__(
        self,
        file: _NewFile,
        layout: TableLayout,
        buckets: range,
        *,
        complete: bool = True,
        num_rows: int | None = None,
        about: int = 0,
    ):
        """Makes the group. num_rows: all that will come, or None; then `about` so many."""
        self.group = make_group(file.tables, layout.name)
        self.group.attrs.update(table_attributes(layout), complete=complete)
        self._name, self._buckets, self._num_rows, self._about = layout.name, buckets, num_rows, about
        self._at, self._path = 0, file.path
        self._counts: list[Array] = []

    def add(self, rows: dict[str, Array], counts: Array) -> None:
        """Adds the rows of the next buckets, with the number of rows in each."""
        _check_finite(self._name, rows.get(RECORDS, rows))
        for name, array in rows.items():
            with _writing(self._path):
                _append(self.group, name, array, self._at, self._num_rows, self._about)
        self._at += len(next(iter(rows.values())))
        self._counts.append(counts)

    def end(self) -> Array:
        """Completes the group; returns where the rows of each bucket begin, and the end."""
        if "state" not in self.group and RECORDS not in self.group:
            self.group["state"] = np.empty((self._at, 0), np.float32)
        self.group["buckets"] = np.array(self._buckets, np.uint32)
        offsets = np.cumsum([0, *np.concatenate(self._counts)], dtype=np.uint64)
        self.group["bucket_offsets"] = offsets
        return offsets.astype(np.int64)


def _write_table(
    file: _NewFile, layout: TableLayout, table: Table, buckets: range, since: int, num_rows: int
) -> None:
    columns = _Columns(file, layout, buckets, complete=since == 0, num_rows=None if since else num_rows)
    decided: list[dict[str, Array]] = []
    at_once = _buckets_at_once(table, buckets)
    for rows, decides in one_ahead(table.snapshot_buckets(*some, since) for some in at_once):
        columns.add(rows, decides["counts"])
        decided.append(decides)
    columns.end()
    _write_decides(columns.group, decided)
    if since:
        columns.group["removed"] = np.sort(table.removed_keys())


def _write_cold_table(
    file: _NewFile,
    into: tuple[_NewFile, int],
    layout: TableLayout,
    table: Table,
    buckets: range,
    known: Sequence[ColdFile],
) -> Array:
    """Writes all rows of a table: those on disk that no known file has into one of their own.

    into: that one, and its number. Returns where the rows of each bucket begin there, and the end.
    """
    cold_file, number = into
    on_disk = table.cold_rows
    columns = _Columns(file, layout, buckets, about=table.num_rows - on_disk)
    new = _Columns(cold_file, layout, buckets, about=on_disk - sum(table.copied_rows().values()))
    places = ColdTable(layout.name, known, buckets.start)
    decided: list[dict[str, Array]] = []
    at_once = _buckets_at_once(table, buckets)
    for some, (rows, decides, copied, found) in one_ahead(
        (some, table.copy_buckets(*some, number)) for some in at_once
    ):
        columns.add(rows, decides["counts"])
        if RECORDS in copied:
            copied = {RECORDS: copied[RECORDS].view(record_type(table))[:, 0]}
        new.add(copied, found["counts"])
        places.add(*some, found)
        decided.append(decides)
    columns.end()
    _write_decides(columns.group, decided)
    offsets = new.end()
    for of_file in places.masks():
        write_mask(columns.group, *of_file)
    if num_rows := int(offsets[-1]):
        token = int(cold_file.tables.attrs[TOKEN])
        write_mask(columns.group, cold_file.path.name, full_mask(num_rows), num_rows, token)
    return offsets


def _write_decides(group: h5py.Group, decided: Sequence[dict[str, Array]]) -> None:
    every = {name: np.concatenate([decides[name] for decides in decided]) for name in decided[0]}
    group["ages"] = every["ages"]
    if every["sightings"].size:
        group["counted"] = every["counted"]
        group["sightings"] = every["sightings"]


def _buckets_at_once(table: Table, buckets: range) -> Iterator[tuple[int, int]]:
    """Yields a few buckets at a time, [begin, end)."""
    at_once = max(1, PART_BYTES * len(buckets) // max(1, table.num_rows * table.row_bytes))
    for first in range(buckets.start, buckets.stop, at_once):
        yield first, min(first + at_once, buckets.stop)


def _check_finite(table: str, rows: Mapping[str, Array] | Array) -> None:
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


def _append(group: h5py.Group, name: str, data: Array, at: int, num_rows: int | None, about: int) -> None:
    """Puts an array into a dataset, beginning at row `at`.

    num_rows: of the whole dataset; None if it grows with each call, to about so many.
    Shapes: data [n, ...].
    """
    width = data.shape[1:]
    if 0 in width:  # the state of an optimizer that has none
        return
    if name not in group and num_rows is not None:
        group.create_dataset(name, (num_rows, *width), data.dtype)
    elif name not in group:
        entry_bytes = int(np.prod(width, dtype=np.int64)) * data.itemsize
        chunks = (max(1, min(CHUNK_BYTES // entry_bytes, max(len(data), about))), *width)
        group.create_dataset(name, (0, *width), data.dtype, maxshape=(None, *width), chunks=chunks)
    dataset = group[name]
    if num_rows is None:
        dataset.resize(at + len(data), axis=0)
    if data.size:
        dataset[at : at + len(data)] = data
