"""A batch that came ahead of its step is final when its last patch is there, whichever comes first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np

from persia_hpc.protocol.messages import Patch
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.trainer.patches import EarlyBatches

PARTS = [[0, 3], [], [4]]


def test_a_batch_is_final_after_its_last_patch() -> None:
    """Of three patches some come before the batch, from memory that is used again, and others after it."""
    for before in range(len(PARTS) + 1):
        early = EarlyBatches()
        rows = np.zeros((6, 2), np.float32)
        batch = cast(RowBatch, SimpleNamespace(step=before, rows=[rows]))
        final = []
        for number, places in enumerate(PARTS):
            if number == before:
                assert early.get(before) is None
                final.append(early.add(batch))
                assert early.get(before) is batch  # while it waits
            at = np.array(places, np.uint32)
            values = np.full((len(places), 2), number + 1, np.float32)
            final.append(early.patch(Patch(before, 0, [at], [values], len(PARTS) - 1 - number)))
            values[:] = -1
        if before == len(PARTS):
            final.append(early.add(batch))
        assert early.get(before) is None
        assert final == [None] * 3 + [batch]
        assert rows[:, 0].tolist() == [1, 0, 0, 1, 3, 0]
