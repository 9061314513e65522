"""Leaves out a part of the negatives of training data (`data.keep_negatives`), chosen by their places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from persia_hpc._native import mix
from persia_hpc.samples.batch import Rows, SampleBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource

PIECE_ROWS = 1 << 18  # whose labels are read at a time, whole blocks
DECODED_ROWS = 1 << 16  # that are decoded at a time
BLOCK_ROWS = 1 << 12  # for which it is known how many are kept before them


class Downsampled(FileSource):
    """Reads the rows of `files` whose label isn't 0, and the share `keep` of the others. See `FileSource`.

    Whether a negative is kept depends on the seed and its row alone: so any process finds the same ones, and
    more of them with a larger share. The labels of all rows are read once, here; then a bit a row is held.
    """

    def __init__(self, files: FileSource, label: int, keep: float, seed: int) -> None:
        """label: the column of the label.

        Raises DataError for damage in the labels.
        """
        infos, schema, num_rows, table = files._infos, files.schema, files.num_samples, files._table
        super().__init__(infos, schema, num_rows, files._binary_labels, files._sequences, table)
        self._files = files
        bare = None if table is None else replace(table, ids={}, dense={}, weight=None, group=None, time=None)
        labels = FileSource(
            [replace(info, schema=_labels_only(info.schema)) for info in infos],
            _labels_only(schema),
            num_rows,
            files._binary_labels,
            table=bare,
        )
        bits, counts = [np.empty(0, np.uint8)], [0]
        for begin in range(0, num_rows, PIECE_ROWS):
            rows = np.arange(begin, min(begin + PIECE_ROWS, num_rows), dtype=np.uint64)
            kept = labels.read(begin, begin + len(rows)).labels[:, label] != 0
            kept |= keeps(rows, keep, seed)
            bits.append(np.packbits(kept))
            counts += np.add.reduceat(kept, np.arange(0, len(rows), BLOCK_ROWS), dtype=np.int64).tolist()
        labels.close()
        self._bits = np.concatenate(bits)
        self._before = np.cumsum(counts)  # kept rows before each block, and of all

    @property
    def num_samples(self) -> int:
        """Returns the number of rows that are kept."""
        return int(self._before[-1])

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Returns (path, rows kept) of each file of which any are."""
        found, begin = [], 0
        for path, rows in super().files:
            found.append((path, self._rank(begin + rows) - self._rank(begin)))
            begin += rows
        return tuple((path, rows) for path, rows in found if rows)

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end) of those that are kept.

        Raises DataError and ValueError as `FileSource.read` does.
        """
        if not 0 <= begin <= end <= self.num_samples:
            raise ValueError(f"got rows [{begin}, {end}), expected a range within [0, {self.num_samples})")
        if begin == end:
            return super().read(0, 0)
        first, last = self._row(begin), self._row(end - 1)
        pieces = []
        for at in range(first, last + 1, DECODED_ROWS):  # a small share would else decode very many at once
            kept = self._kept(at, min(at + DECODED_ROWS, last + 1))
            if kept.any():
                batch = super().read(at, at + len(kept))
                pieces.append(batch if kept.all() else batch.take(np.flatnonzero(kept)))
        return pieces[0] if len(pieces) == 1 else SampleBatch.concatenate(pieces)

    def block_bounds(self, block_rows: int) -> Rows | None:
        """Returns where blocks begin and end, in rows that are kept. See `FileSource.block_bounds`."""
        bounds = super().block_bounds(block_rows)
        return None if bounds is None else np.unique([self._rank(int(bound)) for bound in bounds])

    def check_sequences(self, share: int = 0, shares: int = 1) -> None:
        """Checks all rows, also those that are left out. See `FileSource.check_sequences`."""
        self._files.check_sequences(share, shares)

    def _kept(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Returns which of the rows [begin, end) are kept."""
        first = begin // 8
        bits = np.unpackbits(self._bits[first : -(-end // 8)])[begin - 8 * first : end - 8 * first]
        return bits.view(np.bool_)

    def _rank(self, row: int) -> int:
        """Returns how many rows before this one are kept."""
        block = row // BLOCK_ROWS
        return int(self._before[block]) + int(self._kept(block * BLOCK_ROWS, row).sum())

    def _row(self, number: int) -> int:
        """Returns the row that is the one of this number among those that are kept, from 0."""
        block = int(np.searchsorted(self._before, number, side="right")) - 1
        begin = block * BLOCK_ROWS
        kept = np.flatnonzero(self._kept(begin, begin + BLOCK_ROWS))
        return begin + int(kept[number - self._before[block]])


def keeps(rows: npt.NDArray[np.uint64], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Returns whether a negative at each of these rows is kept.

    Shapes: [N] in and out.
    """
    key = mix(np.array([seed % (1 << 64)], np.uint64))
    kept: npt.NDArray[np.bool_] = (mix(rows ^ key) >> np.uint64(11)) < share * 2.0**53
    return kept


def _labels_only(schema: DatasetSchema) -> DatasetSchema:
    return replace(schema, features=(), dense_names=(), has_weight=False, has_group=False, has_time=False)
