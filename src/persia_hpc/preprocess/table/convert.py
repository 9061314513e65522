"""Converts frames of a table to batches of samples, as the schema says.

Shapes: N rows of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import (
    NUMBER,
    Numbers,
    buckets,
    crossed,
    id_type,
    spelled,
    split_lists,
    split_places,
    time_parts,
    to_groups,
    to_ids,
    to_numbers,
    to_seconds,
)
from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.kinds import Lengths, check_type, flatten, is_list, kept
from persia_hpc.preprocess.rules import MissingWords, as_number, equal
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.ids import IdFilter
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .schema import Dense, Ids, Label, TableSchema


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

    @property
    def deviation(self) -> float:
        """Is the standard deviation, 0 without numbers."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0

    def apply(self, numbers: Numbers) -> Numbers:
        """Returns the numbers scaled to mean 0 and deviation 1; a constant column becomes 0."""
        return (numbers - self.mean) / (self.deviation or 1.0)


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
        self.missing = MissingWords(schema.missing)
        self.id_types = {}
        self._part_types: dict[Ids, str] = {}  # of crosses
        features = []
        for name, entry in schema.ids.items():
            multi = is_list(first.frame[entry.column].dtype) or entry.multi
            for part in entry.cross or (entry,) if entry.edges or entry.cross else ():
                if is_list(first.frame[part.column].dtype):
                    got, what = first.type_of(part.column), "cross" if entry.cross else "edges of"
                    raise UserError(
                        f"{first.path}: {part.column}: got {got}, expected one value in each row, for the "
                        f"{what} ids.{name}"
                    )
            self._part_types |= {part: self._type_of(first, part) for part in entry.cross}
            if entry.part is not None:
                role = "dense" if entry.part == NUMBER else "time"
                check_type(first.frame[entry.column].dtype, role, Place(first, entry.column))
            if entry.weights is not None and not multi:
                raise UserError(
                    f"{first.path}: {entry.column}: got one id in each row, expected lists, which alone have "
                    f"weights; set ids.{name}.separator, or leave its `weights` out"
                )
            features.append(FeatureSchema(name, multi=multi, weighted=entry.weighted))
            self.id_types[name] = self._type_of(first, entry)
        self.dataset = DatasetSchema(
            tuple(features),
            tuple(schema.dense),
            tuple(schema.labels),
            has_weight=schema.weight is not None,
            has_group=schema.group is not None,
            has_time=schema.time is not None,
        )

    def _type_of(self, first: Frame, entry: Ids) -> str:
        """Returns whether the ids of a feature are integers or text, if need be by its first values."""
        if entry.part == NUMBER or entry.type != "auto":
            return "integer" if entry.part == NUMBER else entry.type
        multi = is_list(first.frame[entry.column].dtype) or entry.multi
        return id_type(self._listed(first, entry)[0] if multi else self._single(first, entry)[0])

    def _values(self, source: Frame, column: str) -> tuple[pl.Series, Place]:
        """Returns the values [N] of a column, with null for missing ones, and their place."""
        place = Place(source, column)
        return self.missing.cleaned(source.frame[column], place), place

    def _single(self, source: Frame, entry: Ids) -> tuple[pl.Series, Place]:
        """Returns the values [N] of a feature with one id a row, null for missing ones, and their place."""
        if entry.cross:
            return crossed([self._part(source, part) for part in entry.cross]), Place(source, entry.column)
        values, place = self._values(source, entry.column)
        if entry.part is not None:
            values = time_parts(values, entry.part, entry.format, place)
        if entry.edges:
            values = buckets(values, entry.edges, place)
        return values, place

    def _part(self, source: Frame, entry: Ids) -> tuple[pl.Series, Place]:
        """Returns what a feature gives to a cross: whole numbers in text as they would be without a point."""
        values, place = self._single(source, entry)
        if self._part_types[entry] == "integer" and values.dtype == pl.String:
            values = spelled(values, "integer")
        return values, place

    def _listed(self, source: Frame, entry: Ids) -> tuple[pl.Series, Lengths, Place]:
        """Returns the values of all rows without missing ones, how many each row has, and their place.

        A single value is a list of one.
        Shapes: values [M] and lengths [N].
        """
        column, place = source.frame[entry.column], Place(source, entry.column)
        if is_list(column.dtype):
            values, lengths = flatten(column)
            place = _place_of(source, entry.column, values, lengths)
        else:
            values, place = self._values(source, entry.column)
            lengths = np.ones(len(values), np.int64)
            if entry.separator is not None and values.dtype == pl.String:
                values, lengths = split_lists(values, entry.separator)
        values, lengths = kept(self.missing.cleaned(values, place), lengths)
        return values, lengths, _place_of(source, entry.column, values, lengths)

    def _places(self, source: Frame, column: str, separator: str | None) -> tuple[pl.Series, Lengths]:
        """Returns the values of all rows with null for missing ones, and how many places each row has.

        Shapes: values [M] and lengths [N].
        """
        if is_list(source.frame[column].dtype):
            values, lengths = flatten(source.frame[column])
        else:
            values = self._values(source, column)[0]
            lengths = np.ones(len(values), np.int64)
            if separator is not None and values.dtype == pl.String:
                values, lengths = split_places(values, separator)
        return self.missing.cleaned(values, _place_of(source, column, values, lengths)), lengths

    def _id_weights(self, source: Frame, entry: Ids) -> npt.NDArray[np.float32] | None:
        """Returns the weights of a feature's ids, without those of missing ids; None if it has none.

        Raises UserError for a row with another number of weights than ids, and for what is no finite number.
        """
        if entry.weights is None:
            return None
        ids, wanted = self._places(source, entry.column, entry.separator)
        values, lengths = self._places(source, entry.weights, entry.separator)
        wrong = lengths != wanted
        if wrong.any():
            expected = f"as many weights as the row has ids in {entry.column!r}, {wanted[wrong.argmax()]}"
            Place(source, entry.weights).refuse(wrong, expected)
        here = ids.is_not_null()
        rows = np.repeat(np.arange(len(lengths)), lengths)[here.to_numpy()]
        values = values.filter(here)
        return to_numbers(values, "weight", Place(source, entry.weights, values, rows)).astype(np.float32)

    def ids(self, source: Frame, name: str) -> tuple[IdColumn, pl.Series]:
        """Returns the ids of feature `name`, including rare ones, and the values that they stand for.

        Raises UserError for a column or value that can't be ids.
        """
        entry = self.schema.ids[name]
        if entry.part == NUMBER:
            return self._number(source, entry)
        if not self.dataset.feature(name).multi:
            if is_list(source.frame[entry.column].dtype):
                raise UserError(
                    f"{source.path}: {entry.column}: got {source.type_of(entry.column)}, expected one id in "
                    "each row, as in the first rows of the table"
                )
            values, place = self._single(source, entry)
            return IdColumn(to_ids(values, self.id_types[name], place)), values
        values, lengths, place = self._listed(source, entry)
        ids = to_ids(values, self.id_types[name], place)
        return IdColumn.from_lengths(ids, lengths, self._id_weights(source, entry)), values

    def _number(self, source: Frame, entry: Ids) -> tuple[IdColumn, pl.Series]:
        """Returns the id 0 in each row that has a number, which is its weight, and those ids."""
        values, place = self._values(source, entry.column)
        numbers = to_numbers(values, "dense", place, missing=0.0)
        known = values.is_not_null().to_numpy()
        ids = np.zeros(int(known.sum()), np.uint64)
        weights = numbers[known].astype(np.float32)
        return IdColumn.from_lengths(ids, known.astype(np.int64), weights), pl.Series(ids)

    def dense(self, source: Frame, entry: Dense, moments: Moments | None) -> Numbers:
        """Returns the numbers [N] after the transforms; with `moments` None, before `standardize`.

        Raises UserError for a value that is no finite number, or that log1p can't take.
        """
        values, place = self._values(source, entry.column)
        numbers = to_numbers(values, "dense", place, missing=entry.missing)
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
        values, place = self._values(source, entry.column)
        check_type(values.dtype, "label", place)
        is_number = entry.positive is None or as_number(entry.positive) is not None
        missing = values.is_null()
        if values.dtype.is_float() or (values.dtype == pl.String and is_number):
            missing |= values.cast(pl.Float64, strict=False).is_nan().fill_null(False)  # also the text "-nan"
        if entry.missing is None:
            return self._labels(values, place, entry, missing)
        labels = self._labels(values, place, entry, None)
        return np.where(missing.to_numpy(), float(entry.missing), labels)

    def _labels(self, values: pl.Series, place: Place, entry: Label, refused: pl.Series | None) -> Numbers:
        """Returns the labels; those of missing values are refused if given, else they mean nothing."""
        if entry.positive is not None:
            if refused is not None:
                wanted = f"a value to compare with {entry.positive!r} (every row needs a label)"
                place.refuse(refused.to_numpy(), wanted)
            same = equal(values, entry.positive, numbers_are_truth=True)
            return same.fill_null(False).to_numpy().astype(np.float64)
        numbers = to_numbers(values, "label", place, missing=None if refused is not None else 0.0)
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
        values, place = self._values(source, self.schema.weight)
        weight = to_numbers(values, "weight", place)
        place.refuse(weight < 0, "a weight of 0 or more")
        return weight.astype(np.float32)

    def _group(self, source: Frame) -> npt.NDArray[np.int64] | None:
        if self.schema.group is None:
            return None
        return to_groups(*self._values(source, self.schema.group))

    def _time(self, source: Frame) -> npt.NDArray[np.int64] | None:
        if self.schema.time is None:
            return None
        values, place = self._values(source, self.schema.time.column)
        return to_seconds(values, self.schema.time.format, place)


def _place_of(source: Frame, column: str, values: pl.Series, lengths: Lengths) -> Place:
    return Place(source, column, values, np.repeat(np.arange(len(lengths)), lengths))
