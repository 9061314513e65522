"""Models and a transform that the jobs of these tests name by import path."""

from __future__ import annotations

import os
import time
from pathlib import Path

from persia_hpc.samples.batch import SampleBatch


def note_gpus(batch: SampleBatch, seed: int, step: int) -> SampleBatch:
    """Leaves what a worker sees of the node's GPUs in the current directory."""
    Path("worker-sees").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
    return batch


def __getattr__(name: str):  # workers import this module, but not torch
    from tests.support.models import Small

    class SlowAtFirst(Small):
        """Takes two minutes for 200 steps, unless its job was requeued or finds a file `quick`."""

        def forward(self, batch):
            if "SLURM_RESTART_COUNT" not in os.environ and not Path("quick").exists():
                time.sleep(0.6)
            return super().forward(batch)

    class NotesGpus(Small):
        def forward(self, batch):
            Path("trainer-sees").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
            return super().forward(batch)

    classes = {"SlowAtFirst": SlowAtFirst, "NotesGpus": NotesGpus}
    if name not in classes:
        raise AttributeError(name)
    return classes[name]
