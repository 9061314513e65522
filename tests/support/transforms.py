"""Batch transforms that tests name by import path; without torch, which workers don't have."""

from __future__ import annotations

import numpy as np

from persia_hpc.samples.batch import IdColumn, SampleBatch


def fail_at_step_5(batch: SampleBatch, seed: int, step: int) -> SampleBatch:
    if step == 5:
        raise ArithmeticError("the transform can't do step 5")
    return batch


def one_id(batch: SampleBatch, seed: int, step: int) -> SampleBatch:
    ids = {name: IdColumn(np.zeros_like(c.values), c.offsets) for name, c in batch.ids.items()}
    return SampleBatch(ids, batch.dense, batch.labels)


def high_ids(batch: SampleBatch, seed: int, step: int) -> SampleBatch:
    """Gives half of all ids numbers from 2^63 on, which are negative as int64."""
    ids = {
        name: IdColumn(column.values + (column.values % 2 << np.uint64(63)), column.offsets)
        for name, column in batch.ids.items()
    }
    return SampleBatch(ids, batch.dense, batch.labels)
