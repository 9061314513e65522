"""Makes batches final that came ahead of their step: writes over the rows that have changed (`fresh`)."""

from __future__ import annotations

import numpy as np

from persia_hpc.protocol.messages import Patch
from persia_hpc.protocol.row_batch import RowBatch


class EarlyBatches:
    """Holds batches and patches, of which either may come first, until both are there."""

    def __init__(self) -> None:
        self._batches: dict[int, RowBatch] = {}  # by step
        self._patches: dict[int, Patch] = {}

    def add(self, batch: RowBatch) -> RowBatch | None:
        """Takes a batch; returns it if its patch is there."""
        patch = self._patches.pop(batch.step, None)
        if patch is None:
            self._batches[batch.step] = batch
            return None
        return _patched(batch, patch)

    def patch(self, patch: Patch) -> RowBatch | None:
        """Takes a patch, whose arrays are copied if they must wait; returns its batch if that is there."""
        batch = self._batches.pop(patch.step, None)
        if batch is None:
            positions, rows = ([np.array(array) for array in each] for each in (patch.positions, patch.rows))
            self._patches[patch.step] = Patch(patch.step, patch.trainer, positions, rows)
            return None
        return _patched(batch, patch)

    def release(self) -> None:
        """Gives back the memory of the batches that wait."""
        for batch in self._batches.values():
            batch.release()
        self._batches.clear()


def _patched(batch: RowBatch, patch: Patch) -> RowBatch:
    """Returns the batch with its final rows, written where they lie: nobody has read them yet."""
    for rows, positions, changed in zip(batch.rows, patch.positions, patch.rows, strict=True):
        whole = np.dtype((np.void, rows.shape[1] * rows.itemsize))  # a row as one element is copied faster
        rows.view(whole)[np.asarray(positions)] = np.asarray(changed).view(whole)
    return batch
