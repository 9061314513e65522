"""Writes a dataset file: buffered to whole chunks, checked, and only under its name once complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc.durable import ErrorKeeper, partial_of, remove_left_partials, sync_path
from persia_hpc.errors import PersiaError, UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import SCHEMA_VERSION, DatasetSchema

from . import names as layout
from . import validity

ID_DTYPES = ("uint8", "uint16", "uint32", "uint64")
VALUES_PER_ROW = 4  # a chunk of multi-hot values holds this many times the rows of other chunks


class _Column:
    """Appends to one growing dataset, in whole chunks.

    A partly written chunk would be compressed, then read back and compressed again by the next write.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._chunk = dataset.chunks[0]
        self._waiting: list[npt.NDArray[Any]] = []
        self._waiting_rows = 0

    def append(self, array: npt.NDArray[Any]) -> None:
        if not self._waiting_rows:
            whole = len(array) - len(array) % self._chunk
            self._write(array[:whole])
            array = array[whole:]
        # A copy, so that the caller may reuse its arrays.
        self._waiting.append(array.astype(self._dataset.dtype, copy=True))
        self._waiting_rows += len(array)
        if self._waiting_rows >= self._chunk:
            joined = np.concatenate(self._waiting)
            whole = len(joined) - len(joined) % self._chunk
            self._write(joined[:whole])
            self._waiting, self._waiting_rows = [joined[whole:]], len(joined) - whole

    def flush(self) -> None:
        if self._waiting_rows:
            self._write(np.concatenate(self._waiting))

    def _write(self, array: npt.NDArray[Any]) -> None:
        if len(array):
            begin = self._dataset.shape[0]
            self._dataset.resize(begin + len(array), axis=0)
            self._dataset[begin:] = array


class DatasetWriter:
    """Appends `SampleBatch`es to one HDF5 file, as a context manager.

    Writes to `<path>.<host>.<process>.partial`; a clean exit syncs it to disk and renames it to `path`
    (replacing an older file), an exception removes it. Not collective: one process, one writer, one file. If
    two processes write the same file, the one that ends last wins; the file is whole in either case.

    path: the file to make.
    schema: what every batch holds; without label names the file has no labels (batches' labels are [B, 0]).
    id_dtypes: stored dtype of a feature's ids, "uint8" to "uint64" (default); a larger id is refused.
    chunk_rows: rows of one HDF5 chunk, the unit of compression, checksum and reading.
    compression: "lz4" (Blosc2; the default where hdf5plugin is installed), "gzip" or "none" (the default
    elsewhere).
    source: where the samples came from (name, URL, licence), kept as an attribute.
    preprocessing: what was done to them, JSON-serialisable, kept as an attribute; may be filled until the
    end.
    check_binary_labels: refuse labels other than 0, 1 and NaN, which stands for a missing one.

    Raises UserError for bad arguments, a batch that doesn't fit the schema, or no samples at all.
    Raises validity.InvalidRowError (a UserError with `.row`, counted from 0 over all batches) for NaN or
    infinity in dense, weight or weights of ids, infinity in labels, a negative weight, a non-binary label, an
    id too large;
    then nothing of that batch is kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: DatasetSchema,
        *,
        id_dtypes: dict[str, str] | None = None,
        chunk_rows: int = 16_384,
        compression: str | None = None,
        source: str = "",
        preprocessing: dict[str, Any] | None = None,
        check_binary_labels: bool = True,
    ) -> None:
        schema.validate()
        self.path = os.path.abspath(os.fspath(path))
        self.schema = schema
        self.num_samples = 0
        self._id_dtypes = dict(id_dtypes or {})
        for name, dtype in self._id_dtypes.items():
            schema.feature(name)
            if dtype not in ID_DTYPES:
                raise UserError(f"id dtype of {name}: got {dtype!r}, expected one of {', '.join(ID_DTYPES)}")
        if chunk_rows < 1:
            raise UserError(f"chunk_rows: got {chunk_rows}, expected 1 or more")
        self._chunk_rows = chunk_rows
        chosen = layout.default_compression() if compression is None else compression
        self._options = layout.compression_options(chosen)
        self._texts = {
            layout.SOURCE: source,
            layout.CREATED_BY: "persia-hpc",
        }
        self._preprocessing = preprocessing or {}
        self._check_binary_labels = check_binary_labels
        self._partial = partial_of(self.path)
        self._file: h5py.File | None = None
        self._target: ErrorKeeper | None = None
        self._columns: dict[str, _Column] = {}
        self._num_values: dict[str, int] = {}
        self._label_min = np.full(len(schema.label_names), np.inf, np.float32)
        self._label_max = -self._label_min
        self._label_binary = np.ones(len(schema.label_names), np.bool_)
        self._label_known = np.tile([0.0, np.inf, -np.inf], (len(schema.label_names), 1))
        self._weight_min, self._weight_max = np.inf, -np.inf

    def __enter__(self) -> DatasetWriter:
        try:
            remove_left_partials(self.path)
            self._target = ErrorKeeper(self._partial)
            self._file = layout.create(self._target)
            self._create_datasets(self._file)
            self._target.check()
        except OSError as error:
            self._discard()
            raise UserError(
                f"{self.path}: can't write there ({error.strerror or error}); "
                "give a path in a writable directory"
            ) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failed:
            raise self._failed(failed) from failed
        finally:
            self._discard()

    def write(self, batch: SampleBatch) -> None:
        """Appends the samples of a batch; its arrays are copied.

        Raises UserError for a batch outside of the `with` block and for what the class refuses.
        """
        if self._file is None:
            raise UserError(f"{self.path}: got a batch outside of the `with` block, expected it inside")
        batch.validate(self.schema)
        self._check_values(batch)
        for feature in self.schema.features:
            column = batch.ids[feature.name]
            values = f"{layout.IDS}/{feature.name}"
            if column.offsets is not None:
                offsets = column.offsets[1:].astype(np.uint64) + np.uint64(self._num_values[feature.name])
                self._columns[f"{values}/{layout.OFFSETS}"].append(offsets)
                self._num_values[feature.name] += len(column.values)
                if column.weights is not None:
                    self._columns[f"{values}/{layout.WEIGHTS}"].append(column.weights)
                values = f"{values}/{layout.VALUES}"
            self._columns[values].append(column.values)
        for name, array in (
            (layout.DENSE, batch.dense),
            (layout.LABEL, batch.labels),
            (layout.WEIGHT, batch.weight),
            (layout.GROUP, batch.group),
            (layout.TIME, batch.time),
        ):
            if name in self._columns and array is not None:
                self._columns[name].append(array)
        self._note_ranges(batch)
        self.num_samples += batch.num_samples
        if self._target is not None and self._target.error is not None:
            raise self._failed(self._target.error)

    def _failed(self, error: OSError) -> PersiaError:
        return PersiaError(
            f"{self.path}: can't write it: {error.strerror or error}; what was there before is as it was. "
            "Make room, or name another folder"
        )

    def _check_values(self, batch: SampleBatch) -> None:
        begin = self.num_samples
        validity.check_finite("dense column", self.schema.dense_names, batch.dense, begin)
        validity.check_labels(self.schema.label_names, batch.labels, begin, binary=self._check_binary_labels)
        if batch.weight is not None:
            validity.check_weight(batch.weight, begin)
        for name, dtype in self._id_dtypes.items():
            if dtype != "uint64":
                column = batch.ids[name]
                validity.check_ids(name, column.values, int(np.iinfo(dtype).max), _row_finder(column, begin))
        for name, column in batch.ids.items():
            if column.weights is not None:
                validity.check_id_weights(name, column.weights, _row_finder(column, begin))

    def _note_ranges(self, batch: SampleBatch) -> None:
        if batch.num_samples == 0:
            return
        # With a missing label the range is NaN: older readers, which know none, then check and refuse.
        np.minimum(self._label_min, batch.labels.min(axis=0), out=self._label_min)
        np.maximum(self._label_max, batch.labels.max(axis=0), out=self._label_max)
        known = self._label_known
        known[:, 0] += np.isfinite(batch.labels).sum(axis=0)
        known[:, 1] = np.fmin(known[:, 1], np.fmin.reduce(batch.labels, axis=0))
        known[:, 2] = np.fmax(known[:, 2], np.fmax.reduce(batch.labels, axis=0))
        self._label_binary &= validity.is_binary(batch.labels).all(axis=0)
        if batch.weight is not None:
            self._weight_min = min(self._weight_min, float(batch.weight.min()))
            self._weight_max = max(self._weight_max, float(batch.weight.max()))

    def _create_datasets(self, file: h5py.File) -> None:
        def create(
            name: str, dtype: npt.DTypeLike, width: int | None = None, rows: int = self._chunk_rows
        ) -> None:
            tail = () if width is None else (width,)
            dataset = file.create_dataset(
                name, (0, *tail), dtype, maxshape=(None, *tail), chunks=(rows, *tail), **self._options
            )
            self._columns[name] = _Column(dataset)

        file.create_group(layout.IDS)
        for feature in self.schema.features:
            path, dtype = f"{layout.IDS}/{feature.name}", self._id_dtypes.get(feature.name, "uint64")
            if not feature.multi:
                create(path, dtype)
                continue
            create(f"{path}/{layout.VALUES}", dtype, rows=VALUES_PER_ROW * self._chunk_rows)
            if feature.weighted:
                create(f"{path}/{layout.WEIGHTS}", np.float32, rows=VALUES_PER_ROW * self._chunk_rows)
            create(f"{path}/{layout.OFFSETS}", np.uint64)
            self._columns[f"{path}/{layout.OFFSETS}"].append(np.zeros(1, np.uint64))
            self._num_values[feature.name] = 0
        if self.schema.dense_names:  # HDF5 has no chunks of width 0: no dense columns, no dataset
            create(layout.DENSE, np.float32, len(self.schema.dense_names))
        if self.schema.label_names:
            create(layout.LABEL, np.float32, len(self.schema.label_names))
        if self.schema.has_weight:
            create(layout.WEIGHT, np.float32)
        if self.schema.has_group:
            create(layout.GROUP, np.int64)
        if self.schema.has_time:
            create(layout.TIME, np.int64)

    def _finish(self) -> None:
        if self.num_samples == 0:
            raise UserError(f"{self.path}: got no samples, expected at least one; no file is written")
        file = self._file
        assert file is not None
        for column in self._columns.values():
            column.flush()
        for attribute, texts in (
            (layout.FEATURE_NAMES, self.schema.feature_names),
            (layout.DENSE_NAMES, self.schema.dense_names),
            (layout.LABEL_NAMES, self.schema.label_names),
        ):
            file.attrs[attribute] = layout.fixed_strings(texts)
        for attribute, text in self._texts.items():
            file.attrs[attribute] = layout.fixed_strings(text)
        file.attrs[layout.PREPROCESSING] = layout.fixed_strings(json.dumps(self._preprocessing))
        file.attrs[layout.SCHEMA_VERSION_ATTRIBUTE] = SCHEMA_VERSION
        file.attrs[layout.NUM_SAMPLES] = np.uint64(self.num_samples)
        file.attrs[layout.DENSE_FINITE] = True
        if self.schema.label_names:
            file.attrs[layout.LABEL_MIN] = self._label_min
            file.attrs[layout.LABEL_MAX] = self._label_max
            file.attrs[layout.LABEL_BINARY] = self._label_binary
            file.attrs[layout.LABEL_KNOWN] = self._label_known
        if self.schema.encoding is not None:
            file.attrs[layout.ENCODING] = layout.fixed_strings(self.schema.encoding)
        if self.schema.has_weight:
            file.attrs[layout.WEIGHT_MIN] = np.float32(self._weight_min)
            file.attrs[layout.WEIGHT_MAX] = np.float32(self._weight_max)
        file.close()
        self._file = None
        assert self._target is not None
        self._target.check()
        os.fsync(self._target.fileno())
        os.replace(self._partial, self.path)
        sync_path(os.path.dirname(self.path))

    def _discard(self) -> None:
        """Closes what is open, and removes the file if it isn't complete."""
        file, target = self._file, self._target
        self._file = self._target = None
        for opened in (file, target):
            with suppress(OSError, RuntimeError):  # the first error is the one to show
                if opened is not None:
                    opened.close()
        with suppress(OSError):
            os.unlink(self._partial)


def _row_finder(column: IdColumn, begin: int) -> Callable[[int], int]:
    def row(value: int) -> int:
        if column.offsets is None:
            return begin + value
        return begin + int(np.searchsorted(column.offsets, value, side="right")) - 1

    return row
