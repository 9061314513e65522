"""One Parquet file that is read as it is, with the schema of `preprocess table` and its conversions.

The samples are those that `preprocess table` would write. Like datafile.py, a scan raises `UserError`,
reading raises `DataError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import DataError, UserError
from persia_hpc.preprocess.columns import NUMBER
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.kinds import is_list, kind_of
from persia_hpc.preprocess.table.convert import Converter, Learned
from persia_hpc.preprocess.table.encoding import encoding_of
from persia_hpc.preprocess.table.input import check_names, typed_columns, typed_frame
from persia_hpc.preprocess.table.schema import Ids, TableSchema, load_schema
from persia_hpc.samples import validity
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.datafile import FIX_DAMAGED, FileInfo, NoSamplesError
from persia_hpc.samples.encoding import sealed
from persia_hpc.samples.parquet_footer import Footer, read_footer
from persia_hpc.samples.schema import FeatureSchema

SMALL_ROWS = 16_384  # row groups are decoded together up to so many rows


def load_table(path: str, *, labels: bool) -> TableSchema:
    """Returns the schema in a TOML file, if Parquet files can be read with it as they are.

    Raises UserError for one that learns from rows, or divides them into splits.
    """
    schema = load_schema(Path(path).expanduser(), whole_files=True)
    learned = [f"dense.{name}.transform" for name, e in schema.dense.items() if "standardize" in e.transform]
    learned += [f"ids.{name}.min_count" for name, entry in schema.ids.items() if entry.min_count > 1]
    learned += [f"ids.{name}.vocabulary" for name, entry in schema.ids.items() if entry.vocabulary]
    if learned:
        raise UserError(
            f"{path}: got {', '.join(learned)}, which is learned from all training rows: make HDF5 files "
            "with `persia-hpc preprocess table` and name those, or leave it out of the schema"
        )
    return replace(schema, labels=schema.labels if labels else {}, format="parquet")


def scan(path: str, table: TableSchema) -> FileInfo:
    """Returns what a file holds, from its footer; reads no samples.

    Raises UserError, which names the file, if it isn't whole or the schema doesn't fit its columns.
    """
    footer = _footer(path)
    num_samples = sum(footer.row_groups)
    types = typed_columns(Path(path), table)
    if num_samples == 0:
        raise NoSamplesError(
            f"{path}: got zero samples, expected at least one; remove the file from the list"
        )
    check_names(Path(path), table, types, unlabelled="use persia-hpc predict")
    _refuse_undecided(path, table, types)
    nothing = _nothing(path, table, types)
    converter = Converter(table, nothing)
    converter.batch(nothing, Learned())  # refuses types that can't be what the schema says
    encoding = sealed(encoding_of(converter, Learned()))["digest"]
    features = tuple(
        replace(feature, mean_length=_mean_length(feature, table.ids[feature.name], types, footer))
        for feature in converter.dataset.features
    )
    schema = replace(converter.dataset, features=features, encoding=encoding)
    try:
        schema.validate()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    unknown = (float("nan"),) * 3
    return FileInfo(
        path,
        num_samples,
        schema,
        dense_checked=False,
        labels_checked=False,
        binary_checked=all(entry.binary for entry in table.labels.values()),
        weight_checked=False,
        known_labels=(unknown,) * len(schema.label_names),
        row_groups=footer.row_groups,
    )


def read_encoding(path: str, table: TableSchema) -> dict[str, Any]:
    """Returns the encoding of a scanned file, as `preprocess table` would write it.

    Raises UserError if the file can't be read.
    """
    converter = Converter(table, _nothing(path, table, typed_columns(Path(path), table)))
    return sealed(encoding_of(converter, Learned()))


def _footer(path: str) -> Footer:
    try:
        return read_footer(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't read it as Parquet ({error}); {FIX_DAMAGED}") from error


def _refuse_undecided(path: str, table: TableSchema, types: dict[str, pl.DataType]) -> None:
    """Refuses ids whose kind rows would decide: of text, or of nulls only, which other files may not have."""
    for name, entry in table.ids.items():
        dtype = types[entry.column]
        inner = getattr(dtype, "inner", dtype) if is_list(dtype) else dtype
        if entry.type == "auto" and entry.part is None and not entry.edges and kind_of(inner) == "text":
            got = "nothing but nulls" if inner == pl.Null else "text"
            raise UserError(
                f'{path}: {entry.column}: got {got} for ids.{name} without `type`, expected type = "string" '
                'or "integer" in the schema: "auto" would be decided by reading rows'
            )


def _nothing(path: str, table: TableSchema, types: dict[str, pl.DataType]) -> Frame:
    """Returns no rows of the file, which tell the types of its columns."""
    return Frame(pl.DataFrame(schema={name: types[name] for name in table.used_columns}), Path(path))


def _mean_length(
    feature: FeatureSchema, entry: Ids, types: dict[str, pl.DataType], footer: Footer
) -> float | None:
    if not feature.multi or entry.part == NUMBER:
        return 1.0
    if not is_list(types[entry.column]):
        return None  # each row is a text, to be separated
    return footer.num_values.get(entry.column, 0) / sum(footer.row_groups)


def read_times(path: str, begin: int, end: int, table: TableSchema) -> npt.NDArray[np.int64]:
    """Returns the times of rows [begin, end), int64, of a scanned file that has them.

    Raises DataError if they can't be read.
    """
    only = replace(table, labels={}, dense={}, ids={}, weight=None, group=None)
    try:
        frame = typed_frame(Path(path), only, begin, end)
        times = Converter(only, frame).batch(frame, Learned()).time
    except UserError as error:
        raise DataError(str(error)) from error
    assert times is not None
    return times


def read_offsets(
    path: str, features: Sequence[str], begin: int, end: int, table: TableSchema
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the offsets of rows [begin, end) of multi-hot features of a scanned file, from 0 on.

    The ids are decoded for it: Parquet has no offsets, and the schema may leave values of a list out.
    Shapes: [end - begin + 1] for each.
    Raises DataError if they can't be read.
    """
    ids = {name: table.ids[name] for name in features}
    only = replace(table, labels={}, dense={}, ids=ids, weight=None, group=None, time=None)
    try:
        frame = typed_frame(Path(path), only, begin, end)
        columns = Converter(only, frame).batch(frame, Learned()).ids
    except UserError as error:
        raise DataError(str(error)) from error
    return {name: column.starts.astype(np.int64) for name, column in columns.items()}


class OpenParquet:
    """Reads rows of one scanned file; keeps the row group that it reads from. See `datafile.OpenFile`."""

    def __init__(
        self, info: FileInfo, features: tuple[FeatureSchema, ...], binary_labels: bool, table: TableSchema
    ) -> None:
        self._info = info
        self._path = Path(info.path)
        self._check_binary = binary_labels and not info.binary_checked
        self._table = replace(table, ids={feature.name: table.ids[feature.name] for feature in features})
        self._bounds = np.cumsum([0, *info.row_groups])
        self._decoded: Frame | None = None
        self._looked_into = 0  # the row group of which a part was read last, counted from 1
        try:
            self._check_same(_footer(info.path).row_groups == info.row_groups)
            self._nothing = _nothing(info.path, self._table, typed_columns(self._path, self._table))
            self._converter = Converter(self._table, self._nothing)
            self._others = Converter(replace(self._table, ids={}), self._nothing)
        except (UserError, KeyError) as error:
            raise DataError(str(error)) from error
        self._check_same(self._converter.dataset.features == features)

    def _check_same(self, same: bool) -> None:
        if not same:
            raise DataError(
                f"{self._path}: got other rows or columns than at the start (rows 0 to "
                f"{self._info.num_samples}); the file was replaced while in use"
            )

    def close(self) -> None:
        """Forgets the rows that are decoded."""
        self._decoded = None

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end) of this file.

        Raises DataError, which names the file, the row and the column, for damage or values that the schema
        doesn't allow.
        """
        try:
            parts = [self._convert(self._nothing, begin)] if begin == end else []
            while begin < end:
                decoded = self._decode(begin, end)
                first, last = decoded.first_row, decoded.first_row + decoded.frame.height
                stop = min(end, last)
                frame = decoded.frame.slice(begin - first, stop - begin)
                parts.append(self._convert(Frame(frame, self._path, first_row=begin), begin))
                begin = stop
                if stop == last:
                    self._decoded = None  # files are mostly read in order
        except UserError as error:
            raise DataError(str(error)) from error
        return SampleBatch.concatenate(parts)

    def _convert(self, source: Frame, first_row: int) -> SampleBatch:
        schema, rows = self._info.schema, source.frame.height
        if rows <= SMALL_ROWS:
            batch = self._converter.batch(source, Learned())
        else:  # ids may be columns as they were decoded; rows of numbers are put together in the cache
            parts = []
            for begin in range(0, rows, SMALL_ROWS):
                part = Frame(source.frame.slice(begin, SMALL_ROWS), self._path, first_row=first_row + begin)
                parts.append(self._others.batch(part, Learned()))
            ids = {name: self._converter.ids(source, name)[0] for name in self._table.ids}
            batch = replace(SampleBatch.concatenate(parts), ids=ids)
        try:
            validity.check_finite("dense column", schema.dense_names, batch.dense, first_row)
            validity.check_labels(schema.label_names, batch.labels, first_row, binary=self._check_binary)
            if batch.weight is not None:
                validity.check_weight(batch.weight, first_row)
        except validity.InvalidRowError as error:
            raise DataError(f"{self._path}: {error}") from error
        return batch

    def _decode(self, begin: int, end: int) -> Frame:
        """Returns the row group with row `begin`, several small ones up to `end`, or a part of one."""
        found = self._decoded
        if found is not None and found.first_row <= begin < found.first_row + found.frame.height:
            return found
        self._decoded = None  # makes room first
        group = int(np.searchsorted(self._bounds, begin, side="right"))
        first, last = int(self._bounds[group - 1]), int(self._bounds[group])
        part = begin > first and group != self._looked_into  # perhaps no more of it will be wanted
        if part:
            self._looked_into = group
            first, last = begin, min(end, last)
        while not part and last < end and int(self._bounds[group + 1]) - first <= SMALL_ROWS:
            group += 1
            last = int(self._bounds[group])
        self._decoded = typed_frame(self._path, self._table, first, last)
        self._check_same(self._decoded.frame.height == last - first)
        return self._decoded
