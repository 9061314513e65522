"""Tells whether samples are those of before, by digests of ranges of rows that are spread over all of them.

A digest is of the values that training reads. So the same samples in other files, elsewhere, compressed in
another way or with a column more, have the same digests. Those of Parquet files cover their row groups too,
which decide in which order samples are shuffled. Small data are covered whole; of larger ones a
change between the ranges stays unnoticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .batch import SampleBatch
from .source import FileSource

LEAST, MOST = 16, 64  # ranges
ROWS = 8192  # of a range, at most: up to MOST times as many samples are covered whole


@dataclass(frozen=True)
class SampleRange:
    """Holds the digest of the rows [begin, end) of a split, and the file in which they begin."""

    begin: int
    end: int
    path: str
    digest: str
    split: str = "train"  # or "items", the catalogue


def sample_ranges(source: FileSource, most: int = MOST, split: str = "train") -> tuple[SampleRange, ...]:
    """Returns the digests of up to `most` ranges of a source's samples; reads these.

    Raises DataError for damage or invalid values in them.
    """
    ranges = []
    groups = repr(source.row_groups).encode() if any(source.row_groups) else b""
    for begin, end in _bounds(source.num_samples, most):
        digest = _digest(source.read(begin, end), groups)
        ranges.append(SampleRange(begin, end, _path_of(source, begin), digest, split))
    source.close()
    return tuple(ranges)


def file_digest(source: FileSource) -> str:
    """Returns one digest of a few ranges of the samples of a small source, such as a single file."""
    digests = [r.digest for r in sample_ranges(source, most=LEAST // 2)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]


def first_difference(
    there: Sequence[SampleRange], here: Sequence[SampleRange]
) -> tuple[SampleRange, SampleRange] | None:
    """Returns the first range whose samples differ, as it is there and here; None if none does."""
    known = {(r.split, r.begin, r.end): r for r in here}
    for old in there:
        new = known.get((old.split, old.begin, old.end))
        if new is not None and new.digest != old.digest:
            return old, new
    return None


def _bounds(num_samples: int, most: int) -> Iterator[tuple[int, int]]:
    """Yields the ranges: the first begins with the first sample, the last ends with the last."""
    if not num_samples:
        return
    count = min(num_samples, most, max(min(LEAST, most), -(-num_samples // ROWS)))
    rows = min(ROWS, -(-num_samples // count))
    for i in range(count):
        begin = i * (num_samples - rows) // max(1, count - 1)
        yield begin, begin + rows


def _digest(batch: SampleBatch, groups: bytes) -> str:
    total = hashlib.sha256(groups)
    for name, column in batch.ids.items():
        total.update(name.encode())
        for array in (column.values, column.offsets, column.weights):
            if array is not None:
                total.update(np.ascontiguousarray(array).tobytes())
    for values in (batch.dense, batch.labels, batch.weight, batch.group, batch.time):
        total.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    return total.hexdigest()[:32]


def _path_of(source: FileSource, row: int) -> str:
    for path, rows in source.files:
        if row < rows:
            return path
        row -= rows
    raise IndexError(row)
