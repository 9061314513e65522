"""Batch transforms that tests name by import path; without torch, which workers don't have."""

from __future__ import annotations

from persia_hpc.samples.batch import SampleBatch


def fail_at_step_5(batch: SampleBatch, seed: int, step: int) -> SampleBatch:
    if step == 5:
        raise ArithmeticError("the transform can't do step 5")
    return batch
