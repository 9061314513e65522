"""A model whose step takes as long as it is told: many trainers can share two cores with it."""

from __future__ import annotations

import time

from torch import Tensor

from persia_hpc.models.tower import Tower
from persia_hpc.trainer.batch import Batch, Inputs


class Sleeping(Tower):
    """A small tower with `seconds` of sleep in each forward pass, which stand for a GPU's work.

    ahead: the share of them that stands for what needs no rows, such as the bottom layers of a DLRM.
    """

    def __init__(self, inputs: Inputs, seconds: float, ahead: float = 0.0) -> None:
        super().__init__(inputs, hidden=(32,))
        self.seconds, self.share = seconds, ahead

    def ahead(self, dense: Tensor) -> Tensor | None:
        """Takes its share of the time; nothing that the forward needs comes of it."""
        if not self.share:
            return None
        time.sleep(self.seconds * self.share)
        return dense

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        time.sleep(self.seconds if batch.made_ahead(self) is None else self.seconds * (1 - self.share))
        return super().forward(batch)
