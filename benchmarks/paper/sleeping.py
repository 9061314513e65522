"""A model whose step takes as long as it is told: many trainers can share two cores with it."""

from __future__ import annotations

import time

from torch import Tensor

from persia_hpc.models.tower import Tower
from persia_hpc.trainer.batch import Batch, Inputs


class Sleeping(Tower):
    """A small tower with `seconds` of sleep in each forward pass, which stand for a GPU's work."""

    def __init__(self, inputs: Inputs, seconds: float) -> None:
        super().__init__(inputs, hidden=(32,))
        self.seconds = seconds

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        time.sleep(self.seconds)
        return super().forward(batch)
