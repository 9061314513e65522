"""Counts how often each id of every feature appears; memory grows with the number of distinct ids only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.preprocess.ids import IdCounts
from persia_hpc.samples.source import Source

BLOCK_ROWS = 65_536


class Frequencies:
    """Counts how often each id of one feature appears."""

    def __init__(self) -> None:
        self.num_ids = 0  # with repetitions
        self.empty_samples = 0
        self.longest = 0  # ids of a sample
        self._counts = IdCounts()

    def add(self, ids: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64] | None) -> None:
        """Counts the ids of more samples.

        lengths: number of ids of each sample; None if each has one
        """
        self.num_ids += len(ids)
        if lengths is not None:
            self.empty_samples += int((lengths == 0).sum())
            self.longest = max(self.longest, int(lengths.max(initial=0)))
        else:
            self.longest = 1
        self._counts.add(ids)

    def ranked(self) -> pl.DataFrame:
        """Returns the columns `id` and `count`, the most frequent id first, equal counts by id."""
        return self._counts.frame(1).select("id", "count").sort("count", "id", descending=[True, False])


@dataclass
class Inspection:
    """Summarises a source: ids of each feature, sums of the labels, ranges and sums of the dense features."""

    num_samples: int
    features: dict[str, Frequencies]
    label_sums: npt.NDArray[np.float64]  # [L], weighted by nothing
    label_counts: npt.NDArray[np.int64]  # [L], of those that aren't missing
    label_least: npt.NDArray[np.float64]  # [L]
    label_most: npt.NDArray[np.float64]
    label_binary: npt.NDArray[np.bool_]  # [L], whether all are 0, 1 or missing
    dense_least: npt.NDArray[np.float64]  # [K]
    dense_most: npt.NDArray[np.float64]
    dense_sums: npt.NDArray[np.float64]

    @property
    def label_rates(self) -> list[float | None]:
        """Is the mean of each label where it isn't missing, [L]; None where it always is."""
        pairs = zip(self.label_sums.tolist(), self.label_counts.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]


def inspect_source(source: Source, limit: int | None = None) -> Iterator[Inspection]:
    """Reads all rows, or the first `limit`, and yields what is known so far after each block of rows.

    It always yields the same object, updated.
    Raises DataError for damaged files.
    """
    total = source.num_samples if limit is None else min(limit, source.num_samples)
    schema = source.schema
    width = len(schema.dense_names)
    found = Inspection(
        0,
        {name: Frequencies() for name in schema.feature_names},
        np.zeros(len(schema.label_names)),
        np.zeros(len(schema.label_names), np.int64),
        np.full(len(schema.label_names), np.inf),
        np.full(len(schema.label_names), -np.inf),
        np.ones(len(schema.label_names), np.bool_),
        np.full(width, np.inf),
        np.full(width, -np.inf),
        np.zeros(width),
    )
    for begin in range(0, total, BLOCK_ROWS):
        batch = source.read(begin, min(begin + BLOCK_ROWS, total))
        for name, column in batch.ids.items():
            lengths = None if column.offsets is None else np.diff(column.offsets).astype(np.int64)
            found.features[name].add(column.values, lengths)
        found.label_sums += np.nansum(batch.labels, axis=0, dtype=np.float64)
        found.label_counts += np.isfinite(batch.labels).sum(axis=0)
        found.label_least = np.fmin(found.label_least, np.fmin.reduce(batch.labels, axis=0))
        found.label_most = np.fmax(found.label_most, np.fmax.reduce(batch.labels, axis=0))
        found.label_binary &= (np.isin(batch.labels, (0, 1)) | np.isnan(batch.labels)).all(axis=0)
        if width:
            found.dense_least = np.minimum(found.dense_least, batch.dense.min(axis=0))
            found.dense_most = np.maximum(found.dense_most, batch.dense.max(axis=0))
            found.dense_sums += batch.dense.sum(axis=0, dtype=np.float64)
        found.num_samples += batch.num_samples
        yield found
    if not total:
        yield found
