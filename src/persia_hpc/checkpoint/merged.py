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

import numpy as np

from persia_hpc.arrays import Array

from .manifest import sources_of
from .parts import COLUMNS, TablePart, open_parts, reading

BYTES_AT_ONCE = 32 << 20


class MergedTable:
    """Reads a table of a checkpoint from the parts of all servers, merged with those of its base."""

    def __init__(self, name: str, newest: Sequence[TablePart], base: Sequence[TablePart]):
        self.name = name
        self.newest = newest
        self.base = base if not all(part.complete for part in newest) else ()
        self.num_buckets = newest[0].num_buckets
        with reading(newest[0].group):
            self.attributes: Mapping[str, Any] = dict(newest[0].group.attrs)
            self.dim = int(self.attributes["dim"])

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one row's entry in each column that the table has."""
        group = self.newest[0].group
        with reading(group):
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
            np.add.at(counts, part.buckets // (self.num_buckets // of), part.counts())
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
        with reading(self.newest[0].group):  # the columns of a sound one have the same lengths
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
            opened = open_parts(directory, manifest, name, self._stack, content=not self._checked)
            for table, part in opened.items():
                parts.setdefault(table, []).append(part)
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
