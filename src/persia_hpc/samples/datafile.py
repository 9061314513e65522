"""One dataset file: a scan of what it holds (no data is read), and reading of row ranges.

A scan raises `UserError`: nothing has started yet. Reading raises `DataError`: damage, or a changed file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p, h5s, h5t

from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.attributes import bounds, check_counts, is_true, known_labels, text_of
from persia_hpc.samples.batch import MAX_IDS, IdColumn, SampleBatch
from persia_hpc.samples.schema import SCHEMA_VERSION, DatasetSchema, FeatureSchema
from persia_hpc.samples.shapes import Shapes

from . import names as layout
from . import validity

CACHE_SLOTS = 4093
FIX_DAMAGED = "the file is damaged or incomplete: copy or prepare it again"


class NoSamplesError(UserError):
    """Is raised for a file that is valid in every other way but has no samples."""


@dataclass(frozen=True)
class FileInfo:
    """Holds what a scan found; the flags say which value checks the file's writer has done already."""

    path: str
    num_samples: int
    schema: DatasetSchema
    dense_checked: bool
    labels_checked: bool
    binary_checked: bool
    weight_checked: bool
    # Of each label, if that is known: in how many rows it isn't missing, its least value there and its most.
    known_labels: tuple[tuple[float, float, float], ...] = ()
    row_groups: tuple[int, ...] = ()  # of a Parquet file: the rows of each


def scan(path: str) -> FileInfo:
    """Returns what a file holds, from its names, shapes, dtypes, filters and attributes; reads no samples.

    Raises UserError, which names the file, if it isn't a readable dataset.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: got no such file, expected a dataset file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read it; change it with chmod or ask its owner")
    if not h5py.is_hdf5(path):
        if not os.path.getsize(path):
            raise UserError(f"{path}: got an empty file, expected a dataset file; copy or make it again")
        raise UserError(
            f"{path}: neither an HDF5 nor a Parquet file; make datasets with `persia-hpc preprocess` or "
            "DatasetWriter"
        )
    try:
        with layout.open_to_read(path) as file:
            return _scan_open(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: can't read it ({_reason(error)}); {FIX_DAMAGED}") from error


def _scan_open(path: str, file: h5py.File) -> FileInfo:
    check_counts(path, file)
    version = file.attrs.get(layout.SCHEMA_VERSION_ATTRIBUTE)
    declared = file.attrs.get(layout.NUM_SAMPLES)
    unlabelled = declared is not None and not np.size(file.attrs.get(layout.LABEL_NAMES, ()))
    counted = layout.LABEL in file or unlabelled
    if version is None or not isinstance(file.get(layout.IDS), h5py.Group) or not counted:
        raise UserError(
            f"{path}: HDF5, but not a persia-hpc dataset: expected the attribute schema_version, a group "
            "/ids and a dataset /label (or, in a file without labels, the attribute num_samples); "
            "docs/dataset_format.md shows how to make one"
        )
    if int(version) != SCHEMA_VERSION:
        raise UserError(
            f"{path}: got schema_version {int(version)}, expected {SCHEMA_VERSION}; "
            + ("update persia-hpc" if int(version) > SCHEMA_VERSION else "prepare the file again")
        )
    check = Shapes(path, file)
    num_samples = check.dataset(layout.LABEL, "iuf", 2).shape[0] if layout.LABEL in file else int(declared)
    if declared is not None and int(declared) != num_samples:
        raise UserError(
            f"{path}: got {num_samples} labels, the file says num_samples {int(declared)}; {FIX_DAMAGED}"
        )
    if num_samples == 0:
        raise NoSamplesError(
            f"{path}: got zero samples, expected at least one; remove the file from the list"
        )
    features = []
    for name in check.names(layout.FEATURE_NAMES, sorted(file[layout.IDS])):
        found = file.get(f"{layout.IDS}/{name}")
        multi = isinstance(found, h5py.Group)
        if multi:
            num_values = check.multi_hot(f"{layout.IDS}/{name}", num_samples)
            weighted = check.weighted(f"{layout.IDS}/{name}", num_values)
        else:
            num_values, weighted = num_samples, False
            check.rows(check.dataset(f"{layout.IDS}/{name}", "iu", 1, found), num_samples)
        features.append(FeatureSchema(name, multi, num_values / num_samples, weighted))
    widths = {}
    for name, kinds, ndim in (
        (layout.DENSE, "iuf", 2),
        (layout.LABEL, "iuf", 2),
        (layout.WEIGHT, "iuf", 1),
        (layout.GROUP, "iu", 1),
        (layout.TIME, "iu", 1),
    ):
        if name in file:
            dataset = check.dataset(name, kinds, ndim)
            check.rows(dataset, num_samples)
            widths[name] = dataset.shape[-1]
    if not features and not widths:
        raise UserError(f"{path}: got neither features nor columns, expected some; prepare the file again")
    K, L = widths.get(layout.DENSE, 0), widths.get(layout.LABEL, 0)
    encoding = file.attrs.get(layout.ENCODING)
    schema = DatasetSchema(
        tuple(features),
        check.column_names(layout.DENSE_NAMES, [f"dense_{i}" for i in range(K)]),
        check.column_names(layout.LABEL_NAMES, ["label"] if L == 1 else [f"label_{i}" for i in range(L)]),
        layout.WEIGHT in widths,
        layout.GROUP in widths,
        layout.TIME in widths,
        None if encoding is None else text_of(encoding),
    )
    try:
        schema.validate()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return FileInfo(
        path,
        num_samples,
        schema,
        dense_checked=K == 0 or is_true(file, layout.DENSE_FINITE),
        labels_checked=not np.isnan(bounds(file, layout.LABEL_MIN, layout.LABEL_MAX, L)).any(),
        binary_checked=is_true(file, layout.LABEL_BINARY, L),
        weight_checked=bool((bounds(file, layout.WEIGHT_MIN, layout.WEIGHT_MAX, 1) >= 0).all()),
        known_labels=tuple((k, low, high) for k, low, high in known_labels(file, num_samples, L).tolist()),
    )


def read_times(path: str, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Returns `/time` of rows [begin, end), int64, of a scanned file that has it.

    Raises DataError if they can't be read.
    """
    try:
        with layout.open_to_read(path) as file:
            times = file[layout.TIME][begin:end]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: /{layout.TIME}, rows {begin} to {end}: {_reason(error)}; {FIX_DAMAGED}"
        ) from error
    return _times(path, times, begin)


def _times(path: str, stored: npt.NDArray[Any], begin: int) -> npt.NDArray[np.int64]:
    """Returns times as int64. HDF5 would make the largest of all that are too large."""
    if stored.dtype.kind == "u" and len(stored) and int(stored.max()) > np.iinfo(np.int64).max:
        row = int((stored > np.iinfo(np.int64).max).argmax())
        raise DataError(
            f"{path}: /{layout.TIME}, row {begin + row}: got {stored[row]}, expected less than 2^63"
        )
    return stored.astype(np.int64)


def read_offsets(
    path: str, features: Sequence[str], begin: int, end: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the offsets of rows [begin, end) of multi-hot features of a scanned file, from 0 on.

    Shapes: [end - begin + 1] for each.
    Raises DataError if they can't be read.
    """
    found = {}
    name = ""
    try:
        with layout.open_to_read(path) as file:
            for feature in features:
                name = f"{layout.IDS}/{feature}/{layout.OFFSETS}"
                stored = file[name][begin : end + 1].astype(np.int64, copy=False)
                found[feature] = stored - stored[:1]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: /{name}, rows {begin} to {end}: {_reason(error)}; {FIX_DAMAGED}") from error
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


class _Dataset:
    """A dataset read with h5py's low-level calls; the overhead of slicing would dominate short reads."""

    def __init__(self, file: h5py.File, name: str, dtype: npt.DTypeLike | None, cache_share: float) -> None:
        dataset = file[name]
        # A chunk larger than the cache would be decompressed again for every part of it that is read.
        least = 2 * int(np.prod(dataset.chunks)) * dataset.dtype.itemsize if dataset.chunks else 0
        access = h5p.create(h5p.DATASET_ACCESS)
        access.set_chunk_cache(CACHE_SLOTS, max(least, int(cache_share * dataset.nbytes)), 1.0)
        self.id = h5d.open(file.id, name.encode(), access)
        self._space = self.id.get_space()
        self.shape: tuple[int, ...] = self.id.shape
        self.dtype = self.id.dtype if dtype is None else np.dtype(dtype)
        # Making these again costs more than a short read.
        self._memory_type = h5t.py_create(self.dtype)
        self._memory_space = h5s.create_simple((0, *self.shape[1:]))
        self._memory_shape: tuple[int, ...] = (0, *self.shape[1:])

    def read(self, begin: int, end: int) -> npt.NDArray[Any]:
        out = np.empty((end - begin, *self.shape[1:]), self.dtype)
        if len(out):
            if out.shape != self._memory_shape:
                self._memory_space, self._memory_shape = h5s.create_simple(out.shape), out.shape
            self._space.select_hyperslab((begin,) + (0,) * (out.ndim - 1), out.shape)
            self.id.read(self._memory_space, self._space, out, self._memory_type)
        return out


class OpenFile:
    """Reads rows of one scanned file. Not thread-safe, and only usable in the process that made it.

    info: what the scan found.
    features: the features to read, in this order.
    binary_labels: check that labels are 0 or 1, unless the file's writer has done so.
    cache_bytes: memory for decompressed chunks, over all datasets of the file.

    Raises DataError if the file can't be opened, or isn't what was scanned; UserError if this machine can't
    decompress it, though the one that scanned it can.
    """

    def __init__(
        self, info: FileInfo, features: tuple[FeatureSchema, ...], binary_labels: bool, cache_bytes: int
    ) -> None:
        self._info = info
        self._features = features
        self._check_binary = binary_labels and not info.binary_checked
        self._datasets: dict[str, _Dataset] = {}
        try:
            self._file = layout.open_to_read(info.path)
            self._open_datasets(cache_bytes)
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{info.path}: can't open it to read rows 0 to {info.num_samples} ({_reason(error)}); "
                + FIX_DAMAGED
            ) from error
        # Of a multi-hot feature the offsets come first, one more than rows.
        first, multi = next(iter(self._datasets.values())), bool(features) and features[0].multi
        if first.shape[0] - multi != info.num_samples:
            raise DataError(
                f"{info.path}: got {first.shape[0] - multi} rows, expected rows 0 to "
                f"{info.num_samples} as at the start; the file was replaced while in use"
            )

    def _open_datasets(self, cache_bytes: int) -> None:
        schema = self._info.schema
        wanted: dict[str, npt.DTypeLike | None] = {}
        for feature in self._features:
            path = f"{layout.IDS}/{feature.name}"
            if feature.multi:
                wanted[f"{path}/{layout.OFFSETS}"] = None
                if feature.weighted:
                    wanted[f"{path}/{layout.WEIGHTS}"] = np.float32
                path = f"{path}/{layout.VALUES}"
            wanted[path] = None  # ids are read as stored: numpy widens them faster than HDF5
        if schema.label_names:
            wanted[layout.LABEL] = np.float32
        if schema.dense_names:
            wanted[layout.DENSE] = np.float32
        if schema.has_weight:
            wanted[layout.WEIGHT] = np.float32
        if schema.has_group:
            wanted[layout.GROUP] = None  # HDF5 would make one group of all from 2^63 on
        if schema.has_time:
            wanted[layout.TIME] = None
        cache_share = min(1.0, cache_bytes / max(1, sum(self._file[name].nbytes for name in wanted)))
        for name, dtype in wanted.items():
            layout.check_filters(f"{self._info.path}: /{name}", self._file[name].id)
            self._datasets[name] = _Dataset(self._file, name, dtype, cache_share)

    def close(self) -> None:
        """Closes the file."""
        self._datasets.clear()
        self._file.close()

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end) of this file.

        Raises DataError, which names the file and the rows, for a failed read or checksum and for invalid
        offsets or values in the file.
        """
        schema, info = self._info.schema, self._info
        ids = {f.name: self._ids(f, begin, end) for f in self._features}
        nothing = np.empty((end - begin, 0), np.float32)
        labels = self._rows(layout.LABEL, begin, end) if schema.label_names else nothing
        dense = self._rows(layout.DENSE, begin, end) if schema.dense_names else nothing
        weight = self._rows(layout.WEIGHT, begin, end) if schema.has_weight else None
        try:
            if not info.dense_checked:
                validity.check_finite("dense column", schema.dense_names, dense, begin)
            if self._check_binary or not info.labels_checked:
                validity.check_labels(schema.label_names, labels, begin, binary=self._check_binary)
            if weight is not None and not info.weight_checked:
                validity.check_weight(weight, begin)
        except validity.InvalidRowError as error:
            raise DataError(f"{info.path}: {error}") from error
        return SampleBatch(
            ids,
            dense,
            labels,
            weight,
            self._rows(layout.GROUP, begin, end).astype(np.int64) if schema.has_group else None,
            _times(info.path, self._rows(layout.TIME, begin, end), begin) if schema.has_time else None,
        )

    def _ids(self, feature: FeatureSchema, begin: int, end: int) -> IdColumn:
        path = f"{layout.IDS}/{feature.name}"
        if not feature.multi:
            values = self._rows(path, begin, end)
            return IdColumn(self._widen(path, values, lambda i: begin + i))
        name = f"{path}/{layout.OFFSETS}"
        offsets = self._rows(name, begin, end + 1, rows=(begin, end)).astype(np.int64)
        lengths = np.diff(offsets)
        values_path = f"{path}/{layout.VALUES}"
        if (lengths < 0).any() or offsets[0] < 0 or offsets[-1] > self._datasets[values_path].shape[0]:
            raise self._bad(name, begin, end, "offsets fall or point outside of the values")
        if offsets[-1] - offsets[0] > MAX_IDS:
            raise self._bad(name, begin, end, f"more than {MAX_IDS} ids in one read")
        values = self._rows(values_path, int(offsets[0]), int(offsets[-1]), rows=(begin, end))

        def row(value: int) -> int:
            return begin + int(np.searchsorted(offsets, offsets[0] + value, side="right")) - 1

        return IdColumn.from_lengths(
            self._widen(values_path, values, row), lengths, self._weights(feature, offsets, (begin, end), row)
        )

    def _weights(
        self,
        feature: FeatureSchema,
        offsets: npt.NDArray[np.int64],
        rows: tuple[int, int],
        row_of_value: Callable[[int], int],
    ) -> npt.NDArray[np.float32] | None:
        if not feature.weighted:
            return None
        name = f"{layout.IDS}/{feature.name}/{layout.WEIGHTS}"
        weights = self._rows(name, int(offsets[0]), int(offsets[-1]), rows=rows)
        try:
            validity.check_id_weights(feature.name, weights, row_of_value)
        except validity.InvalidRowError as error:
            raise DataError(f"{self._info.path}: {error}") from error
        return weights

    def _widen(
        self, name: str, values: npt.NDArray[Any], row_of_value: Callable[[int], int]
    ) -> npt.NDArray[np.uint64]:
        if values.dtype.kind == "i" and len(values) and values.min() < 0:
            i = int((values < 0).argmax())
            row = row_of_value(i)
            raise self._bad(name, row, row + 1, f"got id {values[i]}, expected 0 or more")
        return values.astype(np.uint64, copy=False)

    def _rows(
        self, name: str, begin: int, end: int, *, rows: tuple[int, int] | None = None
    ) -> npt.NDArray[Any]:
        try:
            return self._datasets[name].read(begin, end)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._bad(name, *(rows or (begin, end)), f"{_reason(error)}; {FIX_DAMAGED}") from error

    def _bad(self, name: str, begin: int, end: int, problem: str) -> DataError:
        return DataError(f"{self._info.path}: /{name}, rows {begin} to {end}: {problem}")
