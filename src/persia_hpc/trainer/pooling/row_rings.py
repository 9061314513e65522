"""Keeps rows of earlier batches on the device, for batches that leave them out (`wire.reuse_steps`).

U rows of a group, W words of a row in its wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from persia_hpc.protocol.row_batch import RowBatch


class RowRings:
    """Holds a ring of rows for each worker and group; the worker chooses each row's place and lifetime.

    All runs on the current stream: a row is read before one of a later batch takes its place.
    """

    def __init__(self) -> None:
        self._rings: dict[tuple[int, int], Tensor] = {}

    def complete(self, row_batch: RowBatch, rows: Sequence[Tensor], places: Tensor) -> list[Tensor]:
        """Returns all rows of each group, from those in the batch and those at `places` in the rings.

        Must be called for each batch once, in order of step.

        Shapes: rows [U, W], bf16 and scaled_fp16 as int16; places [U of all groups] int32.
        """
        assert row_batch.rings is not None
        complete = []
        for group, (arrived, (begin, size)) in enumerate(zip(rows, row_batch.rings.tolist(), strict=True)):
            words = arrived.view(torch.int16) if arrived.dtype == torch.uint16 else arrived
            key = (row_batch.holder, group)
            ring = self._rings.pop(key, None)
            if ring is None or len(ring) != size:  # as agreed, nothing of the former one is asked for
                ring = None  # gone before there is another
                ring = torch.empty((size, words.shape[1]), dtype=words.dtype, device=words.device)
            self._rings[key] = ring
            ring[begin : begin + len(words)] = words
            first, end = int(row_batch.dim_group_offsets[group]), int(row_batch.dim_group_offsets[group + 1])
            complete.append(ring.index_select(0, places[first:end]))
        return complete
