"""Makes batches final that came ahead of their step: writes over the rows that have changed (`fresh`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from persia_hpc.protocol.messages import Patch
from persia_hpc.protocol.row_batch import RowBatch


class EarlyBatches:
    """Holds batches and patches, of which either may come first, until all of both are there."""

    def __init__(self) -> None:
        self._batches: dict[int, RowBatch] = {}  # by step
        self._patches: dict[int, list[Patch]] = {}

    def add(self, batch: RowBatch) -> RowBatch | None:
        """Takes a batch; returns it if its last patch is there."""
        left = 1
        for patch in self._patches.pop(batch.step, ()):
            _write_over(batch, patch)
            left = patch.left
        if left:
            self._batches[batch.step] = batch
        return None if left else batch

    def patch(self, patch: Patch) -> RowBatch | None:
        """Takes a patch, whose arrays are copied if they must wait.

        Returns its batch if that is there and this is its last patch.
        """
        batch = self._batches.get(patch.step)
        if batch is None:
            positions, rows = ([np.array(array) for array in each] for each in (patch.positions, patch.rows))
            self._patches.setdefault(patch.step, []).append(replace(patch, positions=positions, rows=rows))
            return None
        _write_over(batch, patch)
        return None if patch.left else self._batches.pop(patch.step)

    def get(self, step: int) -> RowBatch | None:
        """Returns the batch of a step that waits for a patch, if it is there."""
        return self._batches.get(step)

    def release(self) -> None:
        """Gives back the memory of the batches that wait."""
        for batch in self._batches.values():
            batch.release()
        self._batches.clear()


def _write_over(batch: RowBatch, patch: Patch) -> None:
    """Writes final rows where those of the batch lie: nobody has read these yet."""
    for rows, positions, changed in zip(batch.rows, patch.positions, patch.rows, strict=True):
        whole = np.dtype((np.void, rows.shape[1] * rows.itemsize))  # a row as one element is copied faster
        rows.view(whole)[np.asarray(positions)] = np.asarray(changed).view(whole)
