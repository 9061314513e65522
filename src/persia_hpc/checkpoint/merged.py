"""Reads the tables of a checkpoint by bucket range, for any number of servers that wrote it.

An incremental checkpoint is merged with its base. Nothing here needs a table's configuration; whether the
checkpoint fits a configuration is for the caller to check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.errors import DataError

from .manifest import check_part, sources_of, unreadable
from .tables import bucket_of, groups_of, open_shard

COLUMNS = ("keys", "rows", "state", "stamps", "steps")  # one entry a row
ONE_NUMBER = ("keys", "stamps", "steps")  # those of which an entry is no list
DECIDES = ("ages", "counted", "sightings")  # one entry a bucket
BYTES_AT_ONCE = 32 << 20
_KEYS_AT_ONCE = 1 << 20


class TablePart:
    """Reads one server's rows of a table, which are a group of the server's file."""

    def __init__(self, name: str, group: h5py.Group):
        self.group = group
        with _reading(group):
            self.complete = bool(group.attrs["complete"])
            self.num_buckets = int(group.attrs["num_buckets"])
            self.buckets = group["buckets"][:].astype(np.int64)  # consecutive
            self.offsets = group["bucket_offsets"][:].astype(np.int64)
            problem = self._problem()
        self._removed_bounds: Array | None = None
        if problem:
            raise DataError(f"{group.file.filename}: table {name!r} is damaged: {problem}")

    def _problem(self) -> str:
        """Returns why the rows of a bucket couldn't be found, '' if they can."""
        if self.num_buckets < 1 or self.num_buckets & (self.num_buckets - 1):
            return f"num_buckets is {self.num_buckets}, expected a power of two"
        inside = not len(self.buckets) or 0 <= self.buckets[0] <= self.buckets[-1] < self.num_buckets
        if not inside or (np.diff(self.buckets) != 1).any():
            return f"buckets don't follow each other in 0..{self.num_buckets - 1}"
        if len(self.offsets) != len(self.buckets) + 1 or self.offsets[0] or (np.diff(self.offsets) < 0).any():
            return "bucket_offsets don't ascend from 0 with one entry a bucket and one more"
        for name in COLUMNS:
            if name in self.group or name != "steps":
                column = self.group[name]
                if column.ndim != (1 if name in ONE_NUMBER else 2) or len(column) != self.offsets[-1]:
                    return f"{name} has shape {column.shape}, expected {self.offsets[-1]} entries"
        return ""

    @property
    def file_name(self) -> str:
        """Returns the name of the file without its directory."""
        return Path(self.group.file.filename).name

    @property
    def num_rows(self) -> int:
        """Returns the number of rows in this part."""
        return int(self.offsets[-1])

    def clip(self, begin: int, end: int) -> tuple[int, int]:
        """Returns the buckets of [begin, end) that this part holds, as another such range.

        The range is empty (two equal numbers) if the part holds none of them.
        """
        if not len(self.buckets):
            return 0, 0
        first, stop = int(self.buckets[0]), int(self.buckets[-1]) + 1
        return (low, high) if (low := max(begin, first)) < (high := min(end, stop)) else (first, first)

    def read(self, begin: int, end: int, columns: Sequence[str]) -> dict[str, Array]:
        """Returns the columns of all rows in buckets [begin, end), which this part must hold.

        Columns that the file doesn't have are left out.
        Raises DataError if they can't be read.
        """
        first = int(self.buckets[0]) if len(self.buckets) else 0
        at = slice(int(self.offsets[begin - first]), int(self.offsets[end - first]))
        with _reading(self.group):
            return {name: self.group[name][at] for name in columns if name in self.group}

    def decides(self, begin: int, end: int) -> dict[str, Array]:
        """Returns the data by which eviction and admission decide in buckets [begin, end).

        The part must hold these buckets. The arrays, named as in DECIDES, have one entry for each bucket.
        Raises DataError if they can't be read.
        """
        at = slice(begin - int(self.buckets[0]), end - int(self.buckets[0]))
        with _reading(self.group):
            return {name: self.group[name][at] for name in DECIDES if name in self.group}

    def removed(self, begin: int, end: int) -> Array:
        """Returns the keys in buckets [begin, end) that were removed since the base checkpoint.

        Some may have been added again since.
        Raises DataError if they can't be read.
        """
        with _reading(self.group):
            data = self.group["removed"]
            if self._removed_bounds is None:  # they ascend
                counts = np.zeros(self.num_buckets, np.int64)
                for at in range(0, len(data), _KEYS_AT_ONCE):
                    found = bucket_of(data[at : at + _KEYS_AT_ONCE], self.num_buckets)
                    counts += np.bincount(found, minlength=self.num_buckets)
                self._removed_bounds = np.concatenate([[0], np.cumsum(counts)])
            bounds = self._removed_bounds
            keys: Array = data[int(bounds[begin]) : int(bounds[end])]
            return keys


class MergedTable:
    """Reads a table of a checkpoint from the parts of all servers, merged with those of its base."""

    def __init__(self, name: str, newest: Sequence[TablePart], base: Sequence[TablePart]):
        self.name = name
        self.newest = newest
        self.base = base if not all(part.complete for part in newest) else ()
        self.num_buckets = newest[0].num_buckets
        with _reading(newest[0].group):
            self.attributes: Mapping[str, Any] = dict(newest[0].group.attrs)
            self.dim = int(self.attributes["dim"])

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one row's entry in each column that the table has."""
        group = self.newest[0].group
        with _reading(group):
            return {name: tuple(group[name].shape[1:]) for name in COLUMNS if name in group}

    @property
    def row_bytes(self) -> int:
        """Returns the bytes that one row has in all columns together."""
        group = self.newest[0].group
        return sum(
            int(np.prod(width, dtype=np.int64)) * group[name].dtype.itemsize
            for name, width in self.widths.items()
        )

    def counts(self, of: int) -> Array:
        """Returns an upper bound of the number of rows in each of `of` equal parts of the key space.

        of: a power of two that divides the table's number of buckets.
        Shapes: returns int64 [of].
        """
        counts = np.zeros(of, np.int64)
        for part in (*self.newest, *self.base):
            np.add.at(counts, part.buckets // (self.num_buckets // of), np.diff(part.offsets))
        return counts

    def read(
        self, begin: int, end: int, *, of: int | None = None, columns: Sequence[str] = COLUMNS
    ) -> dict[str, Array]:
        """Returns the columns of all rows in buckets [begin, end), in ascending order of keys.

        For an incremental checkpoint the rows of its base that were neither changed nor removed are among
        them. of: number of buckets by which the range counts, if it isn't the table's; it must divide the
        table's.
        Raises DataError if they can't be read.
        """
        scale = self.num_buckets // (of or self.num_buckets)
        begin, end = begin * scale, end * scale
        names = [name for name in self.widths if name in columns or name == "keys"]
        pieces = []
        for part in self.newest:
            first, stop = part.clip(begin, end)
            if first == stop:
                continue
            pieces.append(part.read(first, stop, names))
            if not part.complete:
                gone = np.union1d(pieces[-1]["keys"], part.removed(first, stop))
                pieces += [_without(old, gone) for old in self._base_rows(first, stop, names)]
        if not pieces:
            return {n: self.newest[0].group[n][:0] for n in names}
        with _reading(self.newest[0].group):  # the columns of a sound one have the same lengths
            merged = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        order = np.argsort(merged["keys"], kind="stable")
        return {name: values[order] for name, values in merged.items()}

    def _base_rows(self, begin: int, end: int, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        for old in self.base:
            first, stop = old.clip(begin, end)
            if first < stop:
                yield old.read(first, stop, names)

    def decides(self, begin: int, end: int) -> dict[str, Array]:
        """Returns the data by which eviction and admission decide in buckets [begin, end).

        The arrays, named as in DECIDES, have one entry for each bucket.
        Raises DataError if they can't be read.
        """
        clipped = [(part, *part.clip(begin, end)) for part in self.newest]
        found = [
            part.decides(first, stop)
            for part, first, stop in sorted(clipped, key=lambda piece: piece[1])
            if first < stop
        ]
        names = set.intersection(*(set(values) for values in found)) if found else set()
        return {name: np.concatenate([values[name] for values in found]) for name in sorted(names)}


class CheckpointReader:
    """Opens a checkpoint and its base for reading; is a context manager that closes them."""

    def __init__(self, directory: Path, *, checked: bool = False):
        """Opens the files and, unless `checked`, compares their checksums.

        checked: the caller has compared the checksums already; to compare them means to read all files.
        Raises UserError if `directory` is no checkpoint, DataError if it or its base is damaged.
        """
        self.directory = directory
        self._checked = checked
        self._stack = contextlib.ExitStack()
        try:
            sources = sources_of(directory)
            self.manifest = sources[0][1]
            newest, old = [*(self._open(*source) for source in sources), {}][:2]
            self.tables = {
                name: MergedTable(name, parts, old.get(name, ())) for name, parts in sorted(newest.items())
            }
        except BaseException:
            self._stack.close()
            raise

    def _open(self, directory: Path, manifest: Mapping[str, Any]) -> dict[str, list[TablePart]]:
        parts: dict[str, list[TablePart]] = {}
        for name in manifest["shards"]:
            check_part(directory, manifest, name, content=not self._checked)
            shard = self._stack.enter_context(open_shard(directory / name))
            for table, group in groups_of(shard).items():
                parts.setdefault(table, []).append(TablePart(table, group))
        return parts

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def bucket_ranges(counts: Array, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yields consecutive ranges [begin, end) of buckets with at most `max_rows` rows each.

    A range has at least one bucket, even if that alone has more rows.
    Shapes: counts int64 [buckets], the number of rows in each.
    """
    begin = held = 0
    for bucket, count in enumerate(counts.tolist()):
        if bucket > begin and held + count > max_rows:
            yield begin, bucket
            begin, held = bucket, 0
        held += count
    yield begin, len(counts)


def key_ranges(*tables: MergedTable) -> tuple[int, Iterator[tuple[int, int]]]:
    """Returns a number of buckets and ranges [begin, end) of these that cover all keys.

    The rows of each table in one range take about BYTES_AT_ONCE at most.
    """
    of = min(table.num_buckets for table in tables)
    counts = np.sum([table.counts(of) for table in tables], axis=0)
    return of, bucket_ranges(counts, max(1, BYTES_AT_ONCE // max(table.row_bytes for table in tables)))


def _without(rows: dict[str, Array], keys: Array) -> dict[str, Array]:
    stays = ~np.isin(rows["keys"], keys)
    return {name: values[stays] for name, values in rows.items()}


@contextlib.contextmanager
def _reading(group: h5py.Group) -> Iterator[None]:
    try:
        yield
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise unreadable(f"{group.file.filename}: table {group.name[1:]!r}", error) from error
