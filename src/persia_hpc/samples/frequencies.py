"""How often each id of every feature appears; memory grows with the different ids only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from persia_hpc.samples.source import Source

BLOCK_ROWS = 65_536
_PENDING = 1 << 22  # ids that wait to be merged


class Frequencies:
    """Counts of the ids of one feature."""

    def __init__(self) -> None:
        self.num_ids = 0  # with repetitions
        self.empty_samples = 0
        self.longest = 0  # ids of a sample
        self._ids = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int64)
        self._pending: list[npt.NDArray[np.uint64]] = []
        self._waiting = 0

    def add(self, ids: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64] | None) -> None:
        """The ids of some samples; `lengths`: how many each has, None for one each."""
        self.num_ids += len(ids)
        if lengths is not None and len(lengths):
            self.empty_samples += int((lengths == 0).sum())
            self.longest = max(self.longest, int(lengths.max()))
        else:
            self.longest = max(self.longest, 1)
        self._pending.append(np.array(ids))
        self._waiting += len(ids)
        if self._waiting >= max(_PENDING, len(self._ids)):
            self._merge()

    def _merge(self) -> None:
        new, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *self._pending]), return_counts=True)
        self._pending, self._waiting = [], 0
        ids = np.concatenate([self._ids, new])
        order = np.argsort(ids, kind="stable")
        ids, counts = ids[order], np.concatenate([self._counts, counts])[order]
        first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else order
        self._ids = ids[first]
        self._counts = np.add.reduceat(counts, first) if len(first) else counts

    @property
    def num_different(self) -> int:
        """How many different ids there are."""
        self._merge()
        return len(self._ids)

    def top(self, count: int) -> list[tuple[int, int]]:
        """(id, how often) of the most frequent ids, the most frequent first, ties by id."""
        self._merge()
        order = np.lexsort((self._ids, -self._counts))[:count]
        return [(int(self._ids[i]), int(self._counts[i])) for i in order]

    def curve(self) -> npt.NDArray[np.int64]:
        """How often ids appear, the most frequent first."""
        self._merge()
        return np.sort(self._counts)[::-1]

    def seen_once(self) -> int:
        """How many ids appear a single time."""
        self._merge()
        return int((self._counts == 1).sum())


@dataclass
class Inspection:
    """What is in a source."""

    num_samples: int
    features: dict[str, Frequencies]
    label_sums: npt.NDArray[np.float64]  # [L], weighted by nothing
    dense_least: npt.NDArray[np.float64]  # [K]
    dense_most: npt.NDArray[np.float64]
    dense_sums: npt.NDArray[np.float64]

    @property
    def label_rates(self) -> npt.NDArray[np.float64]:
        """Mean of each label."""
        return self.label_sums / max(1, self.num_samples)


def inspect_source(source: Source, limit: int | None = None) -> Iterator[Inspection]:
    """Reads all rows, or the first `limit`; after each block what is known so far (always the same object).

    Raises DataError for damaged files.
    """
    total = source.num_samples if limit is None else min(limit, source.num_samples)
    schema = source.schema
    width = len(schema.dense_names)
    found = Inspection(
        0,
        {name: Frequencies() for name in schema.feature_names},
        np.zeros(len(schema.label_names)),
        np.full(width, np.inf),
        np.full(width, -np.inf),
        np.zeros(width),
    )
    for begin in range(0, total, BLOCK_ROWS):
        batch = source.read(begin, min(begin + BLOCK_ROWS, total))
        for name, column in batch.ids.items():
            lengths = None if column.offsets is None else np.diff(column.offsets).astype(np.int64)
            found.features[name].add(column.values, lengths)
        found.label_sums += batch.labels.sum(axis=0, dtype=np.float64)
        if width:
            found.dense_least = np.minimum(found.dense_least, batch.dense.min(axis=0))
            found.dense_most = np.maximum(found.dense_most, batch.dense.max(axis=0))
            found.dense_sums += batch.dense.sum(axis=0, dtype=np.float64)
        found.num_samples += batch.num_samples
        yield found
    if not total:
        yield found
