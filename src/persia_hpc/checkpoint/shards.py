"""One server's rows in HDF5: written bucket by bucket while training goes on, read by any number of servers.

Shape letters: b buckets of the file, n rows, D dim, S state width, C counts of sightings per bucket.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc._native import Table
from persia_hpc.errors import DataError, PersiaError, UserError
from persia_hpc.files import sync_path
from persia_hpc.layout import TableLayout

from . import files

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

Array = npt.NDArray[Any]
FLUSH_BYTES = 8 << 20  # so much is gathered before it is written
CHUNK_BYTES = 1 << 20
ROWS_AT_ONCE = 1 << 16
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


def load_rows(directory: Path, server: ParameterServer) -> None:
    """Loads the rows of a checkpoint that belong to `server`'s buckets, exactly as they were.

    UserError for tables that don't fit, naming what differs; DataError for damage.
    """
    manifest = files.read_manifest(directory)
    base = files.base_of(directory, manifest)
    sources = [(directory, manifest)]
    if base is not None:
        sources.append((base, files.read_manifest(base)))
    opened = [_open_shards(path, found) for path, found in sources]
    try:
        for layout, table, owned in zip(server.layout.tables, server.tables, server.buckets, strict=True):
            if table is not None:
                _load_table(opened, layout, table, owned)
                table.set_next_step(manifest["step"] + 1)
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{directory}: can't be read ({error}); use an older checkpoint") from error
    finally:
        for shards in opened:
            for shard in shards:
                shard.close()


def _open_shards(directory: Path, manifest: Mapping[str, Any]) -> list[h5py.File]:
    opened = []
    for name in manifest["shards"]:
        files.check_part(directory, manifest, name, content=False)
        try:
            opened.append(h5py.File(directory / name, "r"))
        except OSError as error:
            raise DataError(
                f"{directory / name}: can't be read ({error}); use an older checkpoint"
            ) from error
    return opened


def _load_table(opened: list[list[h5py.File]], layout: TableLayout, table: Table, owned: range) -> None:
    newest = _parts(opened[0], layout, owned)
    for group, begin, end in newest:
        if not group.attrs["complete"]:
            _load_base(opened[1], group, layout, table, owned)
        for rows in _slices(group, begin, end):
            table.import_rows(rows)
        buckets = group["buckets"][:]
        ages = group["ages"][:]
        counted = group["counted"][:] if "counted" in group else np.zeros_like(ages)
        for at in np.flatnonzero((buckets >= owned.start) & (buckets < owned.stop)):
            sightings = group["sightings"][at] if "sightings" in group else np.empty(0, np.uint8)
            try:
                table.restore_bucket(int(buckets[at]), int(ages[at]), int(counted[at]), sightings)
            except ValueError as error:
                raise UserError(
                    f"{group.file.filename}: table {layout.name!r}: {error}: admission counts need the "
                    "capacity and admission that they were made with"
                ) from None


def _load_base(
    base: list[h5py.File], changes: h5py.Group, layout: TableLayout, table: Table, owned: range
) -> None:
    """The rows of the full checkpoint that `changes` says are still here, in its buckets."""
    removed = changes["removed"][:]
    buckets = changes["buckets"][:]
    shared = range(max(owned.start, int(buckets[0])), min(owned.stop, int(buckets[-1]) + 1))
    for group, begin, end in _parts(base, layout, shared):
        for rows in _slices(group, begin, end):
            stays = ~_is_in(rows["keys"], removed)
            table.import_rows({k: np.ascontiguousarray(v[stays]) for k, v in rows.items()})


def _is_in(keys: Array, ordered: Array) -> Array:
    if not len(ordered):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: Array = ordered[at] == keys
    return found


def _parts(shards: list[h5py.File], layout: TableLayout, owned: range) -> list[tuple[h5py.Group, int, int]]:
    """The group of each shard that has some of the `owned` buckets, and where their rows begin and end."""
    parts = []
    for shard in shards:
        if layout.name not in shard:
            continue
        group = shard[layout.name]
        _check_table(shard.filename, group.attrs, layout)
        buckets = group["buckets"][:]
        which = np.flatnonzero((buckets >= owned.start) & (buckets < owned.stop))
        if len(which):
            offsets = group["bucket_offsets"][:]
            parts.append((group, int(offsets[which[0]]), int(offsets[which[-1] + 1])))
    return parts


def _check_table(file_name: str, attributes: Mapping[str, Any], layout: TableLayout) -> None:
    expected = {
        "dim": layout.dim,
        "num_buckets": layout.num_buckets,
        "optimizer": layout.config.optimizer["name"],
        "eviction": layout.config.eviction,
    }
    wrong = [f"{k} {attributes[k]} there, {v} here" for k, v in expected.items() if attributes[k] != v]
    if wrong:
        raise UserError(
            f"{file_name}: table {layout.name!r} doesn't fit the configuration: {'; '.join(wrong)}"
        )


def _slices(group: h5py.Group, begin: int, end: int) -> Iterator[dict[str, Array]]:
    names = [name for name in ("keys", "rows", "state", "stamps", "steps") if name in group]
    for at in range(begin, end, ROWS_AT_ONCE):
        rows = {name: group[name][at : min(at + ROWS_AT_ONCE, end)] for name in names}
        yield rows
