"""The samples of one window: decoded in pieces, then shuffled column by column."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc._native import gather
from persia_hpc.samples.batch import IdColumn, Rows, SampleBatch, concatenate_columns
from persia_hpc.samples.source import Source

EMPTY = IdColumn(np.empty(0, np.uint64), np.zeros(1, np.uint32))
PIECE_ROWS = 16_384  # so many stay in the cache


class Window:
    """Decodes the rows of a few ranges in pieces.

    source: the samples.
    runs: rows [begin, end) of the source, ascending.
    permutation: int64 [rows of all runs] or None: sample i of the window is row `permutation[i]` of them.
    buffer: keeps the pieces of a permuted window; no other window may use it at the same time.
    piece_rows: most rows that one call of Source.read decodes ahead.
    """

    def __init__(
        self,
        source: Source,
        runs: Iterable[tuple[int, int]],
        permutation: Rows | None,
        buffer: Buffer,
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self._source = source
        self._todo = deque(
            (a, min(a + piece_rows, end)) for begin, end in runs for a in range(begin, end, piece_rows)
        )
        self._num_decoded = 0
        self._failed = False
        self._pieces: _InOrder | _Shuffled = (
            _InOrder() if permutation is None else _Shuffled(permutation, buffer)
        )

    def decode_ahead(self, num_rows: int) -> None:
        """Decodes until at least `num_rows` rows, or all, are there.

        An error is kept back: `batch` decodes that piece again and raises it, after the samples that come
        before it.
        """
        if not self._failed:
            try:
                self._decode(num_rows)
            except Exception:
                self._failed = True

    def _decode(self, num_rows: int) -> None:
        while self._todo and self._num_decoded < num_rows:
            begin, end = self._todo[0]
            self._pieces.add(self._source.read(begin, end), self._num_decoded)
            self._todo.popleft()
            self._num_decoded += end - begin

    def batch(self) -> SampleBatch:
        """Returns all samples of the window, in its order, and decodes what is missing."""
        while self._todo:
            self._decode(self._num_decoded + 1)
        return self._pieces.batch()


class _InOrder:
    def __init__(self) -> None:
        self._pieces: list[SampleBatch] = []

    def add(self, piece: SampleBatch, begin: int) -> None:
        self._pieces.append(piece)

    def batch(self) -> SampleBatch:
        if len(self._pieces) > 1:
            self._pieces = [SampleBatch.concatenate(self._pieces)]
        return self._pieces[0]


class Buffer:
    """Keeps memory for the samples of one window, in the order of the files; later windows use it again."""

    def __init__(self) -> None:
        self._batch: SampleBatch | None = None

    def like(self, batch: SampleBatch, size: int) -> SampleBatch:
        """Returns a batch for `size` samples, like `batch` in its arrays; multi-hot columns are empty."""
        if self._batch is None or self._batch.num_samples < size:
            self._batch = _empty_like(batch, size)
        return self._batch.slice(0, size)


class _Shuffled:
    """Collects pieces in a buffer, in order, and shuffles them once all are there.

    One column at a time stays in the cache; all columns of a piece would not.
    """

    def __init__(self, permutation: Rows, buffer: Buffer) -> None:
        self._permutation = permutation
        self._buffer = buffer
        self._ascending: SampleBatch | None = None
        self._multi: dict[str, list[IdColumn]] = {}

    def add(self, piece: SampleBatch, begin: int) -> None:
        if piece.num_samples == len(self._permutation):
            self._ascending = piece
            return
        if self._ascending is None:
            self._ascending = self._buffer.like(piece, len(self._permutation))
            self._multi = {name: [] for name, column in piece.ids.items() if column.offsets is not None}
        for name, columns in self._multi.items():
            columns.append(piece.ids[name])
        for array, to in zip(_arrays(piece), _arrays(self._ascending), strict=True):
            to[begin : begin + len(array)] = array

    def batch(self) -> SampleBatch:
        assert self._ascending is not None
        multi = {name: concatenate_columns(columns) for name, columns in self._multi.items()}
        self._multi = {}
        self._ascending.ids.update(multi)
        return shuffled(self._ascending, self._permutation)


def shuffled(batch: SampleBatch, permutation: Rows) -> SampleBatch:
    """Returns the same as `batch.take(permutation)`, but spends less time on fresh memory."""
    result = _empty_like(batch, len(permutation))
    for array, to in zip(_arrays(batch), _arrays(result), strict=True):
        gather(array, permutation, to)
    for name, column in batch.ids.items():
        if column.offsets is not None:
            result.ids[name] = column.take(permutation)
    return result


def _empty_like(batch: SampleBatch, size: int) -> SampleBatch:
    one_hot = [name for name, column in batch.ids.items() if column.offsets is None]
    # In one block, for which NumPy asks for huge pages: fresh small pages would cost more than the copies.
    values = dict(zip(one_hot, np.empty((len(one_hot), size), np.uint64), strict=True))

    def empty(array: npt.NDArray[Any] | None) -> Any:
        return None if array is None else np.empty((size, *array.shape[1:]), array.dtype)

    return SampleBatch(
        {name: IdColumn(values[name]) if name in values else EMPTY for name in batch.ids},
        *(empty(array) for array in (batch.dense, batch.labels, batch.weight, batch.group, batch.time)),
    )


def _arrays(batch: SampleBatch) -> list[npt.NDArray[Any]]:
    """Returns the arrays of a batch that have one row for each sample."""
    one_hot = [column.values for column in batch.ids.values() if column.offsets is None]
    others = (batch.dense, batch.labels, batch.weight, batch.group, batch.time)
    return [*one_hot, *(array for array in others if array is not None)]
