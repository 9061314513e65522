"""Reads the rows of several files in order of time, whichever file they are in."""

from __future__ import annotations

import numpy as np

from persia_hpc.samples.batch import Rows, SampleBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource

NEAR_ROWS = 64  # rows that are read in vain, because that takes less time than another read


class TimeOrder:
    """Reads the rows of `files` in the order of their `/time`. See `Source`.

    Rows of one time keep the order of the files. The first read reads the times of all rows, and keeps 8
    bytes a row unless they are in order already.
    """

    def __init__(self, files: FileSource) -> None:
        self._files = files
        self._order: Rows | None = None
        self._looked = False

    @property
    def schema(self) -> DatasetSchema:
        """Returns what each batch holds."""
        return self._files.schema

    @property
    def num_samples(self) -> int:
        """Returns the number of rows of all files together."""
        return self._files.num_samples

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the rows [begin, end) in order of time.

        Raises DataError and ValueError as `FileSource.read` does.
        """
        if not self._looked:
            self._order = self._find_order()
            self._looked = True
        if self._order is None or begin == end:
            return self._files.read(begin, end)
        rows = self._order[begin:end]
        ascending = np.sort(rows)
        # Few runs, one or so a file, unless the files themselves are out of order.
        starts = np.flatnonzero(np.diff(ascending, prepend=ascending[0] - NEAR_ROWS - 1) > NEAR_ROWS)
        ends = ascending[np.append(starts[1:], len(ascending)) - 1] + 1
        begins = ascending[starts]
        parts = [self._files.read(int(a), int(b)) for a, b in zip(begins, ends, strict=True)]
        # Row r of run i lies (r - begins[i]) behind all rows of the runs before it.
        before = np.cumsum([0, *(ends - begins)[:-1]])
        run = np.searchsorted(begins, rows, side="right") - 1
        return SampleBatch.concatenate(parts).take(rows - begins[run] + before[run])

    def close(self) -> None:
        """Closes all files; a later read opens them again."""
        self._files.close()

    def _find_order(self) -> Rows | None:
        times = self._files.read_times()
        return None if (times[1:] >= times[:-1]).all() else np.argsort(times, kind="stable")
