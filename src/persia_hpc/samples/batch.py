"""Samples in memory: one `IdColumn` per feature next to dense features and labels.

Shapes: B samples, N ids of one feature, K dense features, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

Rows = npt.NDArray[np.int64]
MAX_IDS = np.iinfo(np.uint32).max


def check_array(name: str, array: object, dtype: npt.DTypeLike, ndim: int) -> None:
    """Checks that `array` is a C-contiguous numpy array of this dtype and number of dimensions.

    Raises UserError, which begins with `name`, if it is anything else.
    """
    expected = f"expected a C-contiguous numpy array, {np.dtype(dtype)}, {ndim} dimension{'s'[: ndim != 1]}"
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name}: got {type(array).__name__}, {expected}")
    if array.dtype != dtype or array.ndim != ndim:
        raise UserError(f"{name}: got {array.dtype} of shape {array.shape}, {expected}")
    if not array.flags.c_contiguous:
        raise UserError(f"{name}: got an array with gaps, {expected} (use numpy.ascontiguousarray)")


@dataclass(frozen=True)
class IdColumn:
    """Holds the ids of one feature for B samples.

    A one-hot column has one id for each sample (N == B) and no offsets. In a multi-hot column the ids of
    sample i are `values[offsets[i]:offsets[i + 1]]`, which may be empty, and each may have a weight.

    Shapes: `values` uint64 [N]; `offsets` None (one-hot) or uint32 [B + 1] (multi-hot); `weights` None or
    float32 [N].
    """

    values: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.uint32] | None = None
    weights: npt.NDArray[np.float32] | None = None

    @property
    def num_samples(self) -> int:
        """Returns the number of samples, B."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def starts(self) -> npt.NDArray[np.uint32]:
        """Returns the offsets, also of a one-hot column; uint32 [B + 1]."""
        return np.arange(len(self.values) + 1, dtype=np.uint32) if self.offsets is None else self.offsets

    @classmethod
    def from_lengths(
        cls,
        values: npt.NDArray[np.uint64],
        lengths: npt.NDArray[Any],
        weights: npt.NDArray[np.float32] | None = None,
    ) -> IdColumn:
        """Returns a multi-hot column made from the number of ids of each sample.

        Shapes: `values` uint64 [N]; `lengths` [B] of any integer dtype, with sum N; `weights` float32 [N].
        """
        return cls(values, _offsets(lengths), weights)

    def validate(self, name: str) -> None:
        """Checks dtypes, shapes and offsets.

        Raises UserError, with the feature's `name` in it, if one of them is wrong.
        """
        check_array(f"ids of {name}", self.values, np.uint64, 1)
        if self.weights is not None:
            check_array(f"weights of {name}", self.weights, np.float32, 1)
            if self.offsets is None or len(self.weights) != len(self.values):
                raise UserError(
                    f"weights of {name}: got {len(self.weights)} for {len(self.values)} ids, expected one "
                    "for each id of a multi-hot feature"
                )
        if self.offsets is None:
            return
        check_array(f"offsets of {name}", self.offsets, np.uint32, 1)
        o = self.offsets
        if len(o) == 0 or o[0] != 0 or o[-1] != len(self.values) or (o[1:] < o[:-1]).any():
            raise UserError(
                f"offsets of {name}: got {_ends(o)}, expected a rising sequence from 0 to {len(self.values)}"
            )

    def slice(self, begin: int, end: int) -> IdColumn:
        """Returns the samples [begin, end); the values are a view, the offsets a copy."""
        if self.offsets is None:
            return IdColumn(self.values[begin:end])
        o = self.offsets[begin : end + 1]
        ids = slice(int(o[0]), int(o[-1]))
        return IdColumn(self.values[ids], o - o[0], None if self.weights is None else self.weights[ids])

    def take(self, rows: Rows) -> IdColumn:
        """Returns copies of the samples at `rows`, in the order of `rows`.

        Shapes: `rows` int64 [M]; the result has M samples.
        """
        if self.offsets is None:
            return IdColumn(self.values.take(rows))
        begin = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows + 1] - begin
        offsets = _offsets(lengths)
        # Position j of the result lies at begin[i] + (j - offsets[i]) for its sample i.
        source = np.repeat(begin - offsets[:-1], lengths)
        source += np.arange(len(source))
        weights = None if self.weights is None else self.weights.take(source)
        return IdColumn(self.values.take(source), offsets, weights)


def _offsets(lengths: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    total = int(lengths.sum(dtype=np.int64))
    if total > MAX_IDS:
        raise UserError(
            f"got {total} ids of one feature in one batch, expected at most {MAX_IDS}; use less samples"
        )
    offsets = np.zeros(len(lengths) + 1, np.uint32)
    np.cumsum(lengths, out=offsets[1:], dtype=np.uint32)
    return offsets


def _ends(offsets: npt.NDArray[Any]) -> str:
    return f"{len(offsets)} offsets" + (f" from {offsets[0]} to {offsets[-1]}" if len(offsets) else "")


def concatenate_columns(columns: Sequence[IdColumn]) -> IdColumn:
    """Returns one column with the samples of all `columns`, in order.

    Raises UserError if some columns are one-hot and others multi-hot, or only some have weights.
    """
    if len(columns) == 1:
        return columns[0]
    values = np.concatenate([c.values for c in columns])
    multi = [c.offsets for c in columns if c.offsets is not None]
    if not multi:
        return IdColumn(values)
    if len(multi) != len(columns):
        raise UserError("got one-hot and multi-hot columns to concatenate, expected all of one kind")
    weights = [c.weights for c in columns if c.weights is not None]
    if len(weights) not in (0, len(columns)):
        raise UserError("got columns with and without weights to concatenate, expected all of one kind")
    lengths = np.concatenate([np.diff(o) for o in multi])
    return IdColumn.from_lengths(values, lengths, np.concatenate(weights) if weights else None)


@dataclass(frozen=True)
class SampleBatch:
    """Holds B samples; `ids` maps the name of each feature to its column, in the order of the dataset.

    Shapes: `dense` float32 [B, K], where K may be 0; `labels` float32 [B, L]; `weight` float32 [B] or None;
    `group` and `time` int64 [B] or None.
    """

    ids: dict[str, IdColumn]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None = None
    group: npt.NDArray[np.int64] | None = None
    time: npt.NDArray[np.int64] | None = None

    @property
    def num_samples(self) -> int:
        """Returns the number of samples, B."""
        return len(self.labels)

    def validate(self, schema: DatasetSchema | None = None) -> None:
        """Checks that dtypes, shapes and offsets fit together, and fit the schema if one is given.

        Raises UserError if something doesn't fit.
        """
        check_array("dense", self.dense, np.float32, 2)
        check_array("labels", self.labels, np.float32, 2)
        B = self.num_samples
        rows = {"dense": len(self.dense)}
        for name, column in self.ids.items():
            column.validate(name)
            rows[f"ids of {name}"] = column.num_samples
        for name, array, dtype in self._optional():
            if array is not None:
                check_array(name, array, dtype, 1)
                rows[name] = len(array)
        for name, got in rows.items():
            if got != B:
                raise UserError(f"{name}: got {got} samples, expected {B} like labels")
        if schema is not None:
            self._match(schema)

    def _optional(self) -> list[tuple[str, npt.NDArray[Any] | None, type[np.generic]]]:
        return [
            ("weight", self.weight, np.float32),
            ("group", self.group, np.int64),
            ("time", self.time, np.int64),
        ]

    def _match(self, schema: DatasetSchema) -> None:
        got_features = {
            FeatureSchema(n, c.offsets is not None, weighted=c.weights is not None)
            for n, c in self.ids.items()
        }
        if got_features != set(schema.features):
            odd = sorted(f"{f.name} ({f.description})" for f in got_features ^ set(schema.features))
            raise UserError(f"features differ from the schema: {', '.join(odd)} on one side only")
        for name, width, names in (
            ("dense", self.dense.shape[1], schema.dense_names),
            ("labels", self.labels.shape[1], schema.label_names),
        ):
            if width != len(names):
                raise UserError(f"{name}: got {width} columns, expected {len(names)} ({', '.join(names)})")
        for (name, array, _), has in zip(
            self._optional(), (schema.has_weight, schema.has_group, schema.has_time), strict=True
        ):
            if (array is not None) != has:
                raise UserError(f"{name}: got {'one' if has is False else 'none'}, the schema says {has}")

    def slice(self, begin: int, end: int) -> SampleBatch:
        """Returns the samples [begin, end); arrays are views except for the offsets of multi-hot columns."""
        return SampleBatch(
            {name: column.slice(begin, end) for name, column in self.ids.items()},
            self.dense[begin:end],
            self.labels[begin:end],
            None if self.weight is None else self.weight[begin:end],
            None if self.group is None else self.group[begin:end],
            None if self.time is None else self.time[begin:end],
        )

    def take(self, rows: Rows) -> SampleBatch:
        """Returns copies of the samples at `rows`, in the order of `rows`, which may repeat.

        Shapes: `rows` int64 [M]; the result has M samples.
        """
        return SampleBatch(
            {name: column.take(rows) for name, column in self.ids.items()},
            self.dense.take(rows, axis=0),  # take is several times faster than indexing for rows
            self.labels.take(rows, axis=0),
            None if self.weight is None else self.weight[rows],
            None if self.group is None else self.group[rows],
            None if self.time is None else self.time[rows],
        )

    @staticmethod
    def concatenate(batches: Sequence[SampleBatch]) -> SampleBatch:
        """Returns one batch with the samples of all batches, in order; all must have the same features.

        Raises UserError if only some of the batches have an optional array, or a feature isn't of the same
        kind in all.
        """
        first = batches[0]
        if len(batches) == 1:
            return first

        def joined(name: str) -> Any:
            parts = [getattr(b, name) for b in batches]
            missing = sum(part is None for part in parts)
            if 0 < missing < len(parts):
                raise UserError(
                    f"{name}: got it in {len(parts) - missing} of {len(parts)} batches, expected all or none"
                )
            return None if missing else np.concatenate(parts)

        return SampleBatch(
            {name: concatenate_columns([b.ids[name] for b in batches]) for name in first.ids},
            joined("dense"),
            joined("labels"),
            joined("weight"),
            joined("group"),
            joined("time"),
        )
