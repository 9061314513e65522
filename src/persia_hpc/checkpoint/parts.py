"""Reads one server's rows of a table in a checkpoint: those that were in memory, and those that were on disk.

The rows of a disk tier lie in files of their own, which later checkpoints share. Such a file is never
changed: each checkpoint says in a mask, a bit a row, which of its rows are still meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.errors import DataError

from .manifest import check_part, unreadable
from .names import is_cold
from .records import RECORDS, columns_of, problem_of, widths_of
from .tables import bucket_of, groups_of, open_shard

COLUMNS = ("keys", "rows", "state", "stamps", "steps")  # one entry a row
ONE_NUMBER = ("keys", "stamps", "steps")  # those of which an entry is no list
DECIDES = ("ages", "counted", "sightings")  # one entry a bucket
COLD = "cold"  # the group of a table that holds the masks, by the names of the files
ROWS = "rows"  # attribute of a mask: how many of its bits are 1
TOKEN = "token"  # attribute of a file of rows from disk, at random, and of all masks of it
_KEYS_AT_ONCE = 1 << 20
_BITS: Literal["little"] = "little"


class TablePart:
    """Reads one server's rows of a table, which are a group of the server's file, and of files beside it.

    cold: the parts with rows from disk. live: the mask of such a part.
    """

    def __init__(
        self,
        name: str,
        group: h5py.Group,
        cold: Sequence[TablePart] = (),
        live: h5py.Dataset | None = None,
    ):
        self.group, self._name = group, name
        self.cold = cold
        self._live = live
        with reading(group):
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
        if RECORDS in self.group:
            problem = problem_of(self.group[RECORDS], self.own_rows)
            if problem:
                return problem
        for name in () if RECORDS in self.group else COLUMNS:
            if name in self.group or name != "steps":
                column = self.group[name]
                if column.ndim != (1 if name in ONE_NUMBER else 2) or len(column) != self.offsets[-1]:
                    return f"{name} has shape {column.shape}, expected {self.offsets[-1]} entries"
        if self._live is not None:
            expected = (-(-self.own_rows // 8),)
            if self._live.dtype != np.uint8 or self._live.shape != expected:
                return f"its mask {self._live.name} has shape {self._live.shape}, expected uint8 {expected}"
            if self.own_rows % 8 and self._live[-1] >> self.own_rows % 8:
                return f"its mask {self._live.name} has bits behind that of the last row"
        for part in self.cold:
            if part.num_buckets != self.num_buckets or not np.array_equal(part.buckets, self.buckets):
                return f"{part.file_name} has other buckets"
            if self._widths() != part._widths():
                return f"{part.file_name} has other columns"
        return ""

    def _widths(self) -> dict[str, tuple[int, ...]]:
        if RECORDS in self.group:
            return widths_of(self.group[RECORDS])
        return {name: self.group[name].shape[1:] for name in COLUMNS if name in self.group}

    def with_cold(self, cold: Sequence[TablePart]) -> TablePart:
        """Returns the part with other parts that have rows from disk."""
        return TablePart(self._name, self.group, cold, self._live)

    def mask(self) -> Array:
        """Returns which rows of a part with rows from disk are meant, a bit a row."""
        assert self._live is not None
        with reading(self._live.parent):
            mask: Array = self._live[:]
        return mask

    @property
    def file_name(self) -> str:
        """Returns the name of the file without its directory."""
        return Path(self.group.file.filename).name

    @property
    def is_plain(self) -> bool:
        """Returns whether all the rows are those of the part's own columns, in their order."""
        return not self.cold and self._live is None

    @property
    def own_rows(self) -> int:
        """Returns the number of rows in the part's own columns."""
        return int(self.offsets[-1])

    def counts(self) -> Array:
        """Returns an upper bound of the number of rows in each of the part's buckets."""
        counts: Array = np.sum([np.diff(part.offsets) for part in (self, *self.cold)], axis=0)
        return counts

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

        They come by bucket and key; `keys` must be among the columns. Columns that the file doesn't have are
        left out.
        Raises DataError if they can't be read.
        """
        pieces = [part._own(begin, end, columns) for part in (self, *self.cold)]
        if len(pieces) == 1:
            return pieces[0]
        order = np.argsort(np.concatenate([piece["keys"] for piece in pieces]), kind="stable")
        return {name: np.concatenate([piece[name] for piece in pieces])[order] for name in pieces[0]}

    def _own(self, begin: int, end: int, columns: Sequence[str]) -> dict[str, Array]:
        first = int(self.buckets[0]) if len(self.buckets) else 0
        at = slice(int(self.offsets[begin - first]), int(self.offsets[end - first]))
        with reading(self.group):
            names = [RECORDS] if RECORDS in self.group else columns
            rows = {name: self.group[name][at] for name in names if name in self.group}
        if self._live is not None:
            with reading(self._live.parent):
                packed = self._live[at.start // 8 : -(-at.stop // 8)]
            live = unpacked(packed, at.start % 8, at.stop - at.start)
            rows = rows if live.all() else {name: values[live] for name, values in rows.items()}
        return columns_of(rows[RECORDS], columns) if RECORDS in rows else rows

    def decides(self, begin: int, end: int) -> dict[str, Array]:
        """Returns the data by which eviction and admission decide in buckets [begin, end).

        The part must hold these buckets. The arrays, named as in DECIDES, have one entry for each bucket.
        Raises DataError if they can't be read.
        """
        at = slice(begin - int(self.buckets[0]), end - int(self.buckets[0]))
        with reading(self.group):
            return {name: self.group[name][at] for name in DECIDES if name in self.group}

    def removed(self, begin: int, end: int) -> Array:
        """Returns the keys in buckets [begin, end) that were removed since the base checkpoint.

        Some may have been added again since.
        Raises DataError if they can't be read.
        """
        with reading(self.group):
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


def packed(live: Array) -> Array:
    """Returns a mask of rows as it is stored: a bit a row."""
    return np.packbits(live, bitorder=_BITS)


def full_mask(count: int) -> Array:
    """Returns the stored mask of so many rows that are all meant."""
    mask = np.full(-(-count // 8), 255, np.uint8)
    mask[-1:] >>= np.uint8(-count % 8)
    return mask


def write_mask(group: h5py.Group, name: str, mask: Array, num_rows: int, token: int) -> None:
    """Notes in a table's group which `num_rows` rows of the file `name`, which has `token`, are meant."""
    stored = group.create_dataset(f"{COLD}/{name}", data=mask)
    stored.attrs[ROWS] = num_rows
    stored.attrs[TOKEN] = token


def unpacked(mask: Array, begin: int, count: int) -> Array:
    """Returns so many bits of a stored mask from `begin` on, as bools."""
    bits: Array = np.unpackbits(mask.view(np.uint8), bitorder=_BITS)[begin : begin + count]
    return bits.view(bool)


def masks_of(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Returns the masks of a table's rows from disk, by the names of the files that hold the rows.

    Raises DataError for what no run writes.
    """
    with reading(group):
        masks = group.get(COLD)
        if masks is None or len(masks.attrs):  # in older files a group with attributes is a table
            return {}
        found = dict(masks.items())
        if not any(is_cold(name) for name in found) and groups_of(masks):  # or tables are in it
            return {}
        if not all(is_cold(name) and isinstance(mask, h5py.Dataset) for name, mask in found.items()):
            raise ValueError(f"got something else than masks of files in {COLD}")
        return found


def open_parts(
    directory: Path,
    manifest: Mapping[str, Any],
    name: str,
    files: ExitStack,
    *,
    owned: Mapping[str, range] | None = None,
    content: bool = False,
) -> dict[str, TablePart]:
    """Opens a server's file, and those beside it that it takes rows from; returns its part of each table.

    owned: of some tables, the buckets that will be read. A part that has none of them lacks its rows from
    disk: else each server would have all servers' files open. content: whether to compare checksums first.
    Raises DataError for damage.
    """
    check_part(directory, manifest, name, content=content)
    shard = files.enter_context(open_shard(directory / name))
    opened: dict[str, dict[str, h5py.Group]] = {}
    parts = {}
    for table, group in groups_of(shard).items():
        part = parts[table] = TablePart(table, group)
        cold = []
        for file, live in masks_of(group).items():
            if file not in manifest["files"]:
                raise DataError(f"{directory / name} takes rows from {file}, which isn't in the manifest")
            if owned is not None and table in owned and not _overlap(part, owned[table]):
                continue
            if file not in opened:
                check_part(directory, manifest, file, content=content)
                opened[file] = groups_of(files.enter_context(open_shard(directory / file)))
            if table not in opened[file]:
                raise DataError(f"{directory / file} is damaged: it has no rows of table {table!r}")
            found = opened[file][table]
            with reading(group):
                same = np.array_equal(live.attrs[TOKEN], found.file.attrs[TOKEN])
            if not same:
                raise DataError(
                    f"{directory / file} isn't the file whose rows {name} means, but of another checkpoint; "
                    "copy the whole checkpoint again"
                )
            cold.append(TablePart(table, found, live=live))
        if cold:
            parts[table] = TablePart(table, group, cold)
    return parts


def _overlap(part: TablePart, owned: range) -> bool:
    begin, end = part.clip(owned.start, owned.stop)
    return begin < end


# What HDF5, and values that no run writes, may raise; memory is told apart by `unreadable`.
_OF_READING: tuple[type[Exception], ...] = (OSError, LookupError, RuntimeError, ValueError, TypeError)
_OF_READING += (AttributeError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def reading(group: h5py.Group) -> Iterator[None]:
    """Lets what reading a table raises, whatever it is, be the error that tells the user."""
    try:
        yield
    except _OF_READING as error:
        raise unreadable(f"{group.file.filename}: table {group.name[1:]!r}", error) from error
