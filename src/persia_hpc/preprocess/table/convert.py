"""Converts frames of a table to batches of samples, as the schema says.

Shapes: N rows of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import Numbers, Place, flatten, id_type, split_lists, to_ids, to_numbers
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.ids import IdFilter
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .schema import Dense, Label, TableSchema


@dataclass
class Moments:
    """Holds mean and deviation of a stream of numbers (Chan's update, so that large means lose no digits)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, numbers: Numbers) -> None:
        """Adds the numbers [N]."""
        if len(numbers):
            mean = float(numbers.mean())
            self.merge(Moments(len(numbers), mean, float(((numbers - mean) ** 2).sum())))

    def merge(self, other: Moments) -> None:
        """Adds the numbers that `other` has seen."""
        if other.count:
            delta, total = other.mean - self.mean, self.count + other.count
            self.squares += other.squares + delta**2 * self.count * other.count / total
            self.mean += delta * other.count / total
            self.count = total

    def apply(self, numbers: Numbers) -> Numbers:
        """Returns the numbers scaled to mean 0 and deviation 1; a constant column becomes 0."""
        deviation = np.sqrt(self.squares / self.count) if self.count else 0.0
        return (numbers - self.mean) / (deviation if deviation > 0 else 1.0)


@dataclass
class Learned:
    """Holds what was learned from the training rows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    filters: dict[str, IdFilter] = field(default_factory=dict)
    vocabularies: dict[str, pl.DataFrame] = field(default_factory=dict)


class Converter:
    """Converts frames to batches.

    The first frame decides the types of `auto` ids and which features are multi-hot.
    """

    def __init__(self, schema: TableSchema, first: Frame) -> None:
        self.schema = schema
        self.id_types = {}
        features = []
        for name, entry in schema.ids.items():
            column = first.frame[entry.column]
            listed = isinstance(column.dtype, pl.List)
            features.append(FeatureSchema(name, multi=listed or entry.separator is not None))
            values = column
            if entry.separator is not None and column.dtype == pl.String:
                values = split_lists(column, entry.separator)[0]
            self.id_types[name] = id_type(values) if entry.type == "auto" else entry.type
        self.dataset = DatasetSchema(
            tuple(features),
            tuple(schema.dense),
            tuple(schema.labels),
            has_weight=schema.weight is not None,
            has_group=schema.group is not None,
            has_time=schema.time is not None,
        )

    def ids(self, source: Frame, name: str) -> tuple[IdColumn, pl.Series]:
        """Returns the ids of feature `name`, including rare ones, and the values that they stand for.

        Raises UserError for a column or value that can't be ids.
        """
        entry = self.schema.ids[name]
        column = source.frame[entry.column]
        if not self.dataset.feature(name).multi:
            ids = to_ids(column, self.id_types[name], Place(source, entry.column))
            return IdColumn(ids), column
        if isinstance(column.dtype, pl.List):
            values, lengths = flatten(column)
        elif entry.separator is not None and column.dtype == pl.String:
            values, lengths = split_lists(column, entry.separator)
        else:
            raise UserError(
                f"{source.path}: {entry.column}: got {column.dtype}, expected lists or text to split"
            )
        owner = np.repeat(np.arange(len(lengths)), lengths)
        ids = to_ids(values, self.id_types[name], Place(source, entry.column, owner))
        return IdColumn.from_lengths(ids, lengths), values

    def dense(self, source: Frame, entry: Dense, moments: Moments | None) -> Numbers:
        """Returns the numbers [N] after the transforms; with `moments` None, before `standardize`.

        Raises UserError for a value that is no finite number, or that log1p can't take.
        """
        place = Place(source, entry.column)
        numbers = to_numbers(source.frame[entry.column], place, missing=entry.missing)
        if entry.clip is not None:
            numbers = np.clip(numbers, *entry.clip)
        for transform in entry.transform:
            if transform == "log1p":
                place.refuse(numbers <= -1, "a number above -1 for log1p (see `clip`)")
                numbers = np.log1p(numbers)
            elif moments is not None:
                numbers = moments.apply(numbers)
            else:
                break
        return numbers

    def label(self, source: Frame, entry: Label) -> Numbers:
        """Returns the labels [N], with `missing` where there is no value.

        Raises UserError for a missing value without `missing`, and for one that is no label.
        """
        column = source.frame[entry.column]
        if entry.missing is None:
            return self._labels(column, Place(source, entry.column), entry)
        known = column.is_not_null()
        if column.dtype.is_float():
            known &= column.is_not_nan()
        rows = np.flatnonzero(known.to_numpy())
        labels = np.full(len(column), float(entry.missing))
        labels[rows] = self._labels(column.gather(rows), Place(source, entry.column, rows), entry)
        return labels

    def _labels(self, column: pl.Series, place: Place, entry: Label) -> Numbers:
        if entry.positive is not None:
            place.refuse(column.is_null().to_numpy(), f"a value to compare with {entry.positive!r}")
            # A boolean True is written "true" in TOML and in CSV.
            text = column.cast(pl.String)
            return (text == entry.positive).to_numpy().astype(np.float64)
        numbers = to_numbers(column, place, missing=None)
        if entry.threshold is not None:
            return (numbers >= entry.threshold).astype(np.float64)
        if entry.binary:
            place.refuse(
                (numbers != 0) & (numbers != 1), "0 or 1 (or set `positive`, `threshold` or `binary = false`)"
            )
        return numbers

    def batch(self, source: Frame, learned: Learned) -> SampleBatch:
        """Returns all rows of the frame as samples.

        Raises UserError for a value that the schema doesn't allow.
        """
        schema, rows = self.schema, source.frame.height
        ids = {}
        for name in schema.ids:
            column = self.ids(source, name)[0]
            if name in learned.filters:
                column = replace(column, values=learned.filters[name](column.values))
            ids[name] = column
        dense = np.empty((rows, len(schema.dense)), np.float32)
        for k, (name, number) in enumerate(schema.dense.items()):
            dense[:, k] = self.dense(source, number, learned.moments.get(name))
        labels = np.empty((rows, len(schema.labels)), np.float32)
        for k, label in enumerate(schema.labels.values()):
            labels[:, k] = self.label(source, label)
        return SampleBatch(ids, dense, labels, self._weight(source), self._group(source), self._time(source))

    def _weight(self, source: Frame) -> npt.NDArray[np.float32] | None:
        if self.schema.weight is None:
            return None
        place = Place(source, self.schema.weight)
        weight = to_numbers(source.frame[self.schema.weight], place, missing=None)
        place.refuse(weight < 0, "a weight of 0 or more")
        return weight.astype(np.float32)

    def _group(self, source: Frame) -> npt.NDArray[np.int64] | None:
        if self.schema.group is None:
            return None
        column = source.frame[self.schema.group]
        place = Place(source, self.schema.group)
        place.refuse(column.is_null().to_numpy(), "the group of the row")
        # Hashing text always: a group is only ever compared, and "7" in one file may be "a7" in the next.
        kind = "string" if column.dtype == pl.String else "integer"
        return to_ids(column, kind, place).view(np.int64)

    def _time(self, source: Frame) -> npt.NDArray[np.int64] | None:
        if self.schema.time is None:
            return None
        entry = self.schema.time
        column = source.frame[entry.column]
        expected = "a time in whole seconds (or set `format`)"
        if column.dtype == pl.String and entry.format is not None:
            column = _datetimes(column, entry.format)
            expected = f"a time like {entry.format!r}"
        seconds = column.dt.epoch("s") if column.dtype.is_temporal() else column.cast(pl.Int64, strict=False)
        Place(source, entry.column).refuse(seconds.is_null().to_numpy(), expected)
        return np.ascontiguousarray(seconds.to_numpy())


def _datetimes(column: pl.Series, codes: str) -> pl.Series:
    """Returns times parsed by strftime codes, null where a text doesn't match.

    Raises UserError for codes that polars refuses.
    """
    if "%H" in codes and "%M" not in codes:  # polars wants both; full hours are a common form
        column, codes = column + "00", codes + "%M"
    try:
        return column.str.to_datetime(codes, strict=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"time.format: got {codes!r}, expected strftime codes ({error})") from error
