"""Draws some samples of a source at random, in blocks of rows, so that few chunks of its files are read."""

from __future__ import annotations

import numpy as np

from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import Source

LEAST_BLOCKS = 16
MOST_ROWS = 16384  # of a block


class DrawnSource:
    """Holds which samples of another source were drawn, in their order there. See `Source`."""

    def __init__(self, source: Source, num_samples: int, seed: int) -> None:
        """Draws `num_samples`, or all if there are fewer, in at least 16 blocks."""
        self._source = source
        self._num_samples = min(num_samples, source.num_samples)
        self._rows = max(1, min(MOST_ROWS, num_samples // LEAST_BLOCKS))
        blocks = -(-source.num_samples // self._rows)
        order = np.random.default_rng(seed).permutation(blocks)
        wanted = -(-self._num_samples // self._rows)
        if blocks - 1 in order[:wanted]:  # which may be short
            wanted += 1
        self._blocks = np.sort(order[:wanted])

    @property
    def schema(self) -> DatasetSchema:
        """Returns what each batch holds."""
        return self._source.schema

    @property
    def num_samples(self) -> int:
        """Returns the number of samples that were drawn."""
        return self._num_samples

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the drawn samples [begin, end).

        Raises DataError for damage or invalid values in the source.
        """
        parts = []
        while begin < end:
            number, at = divmod(begin, self._rows)
            first = int(self._blocks[number]) * self._rows + at
            count = min(end - begin, self._rows - at)
            parts.append(self._source.read(first, first + count))
            begin += count
        return SampleBatch.concatenate(parts or [self._source.read(0, 0)])
