"""Lays batches out in memory as they lie in a trainer's ring, for limits that need no ring."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from persia_hpc.arrays import Array, Bytes
from persia_hpc.protocol.row_batch import RowBatch, pack_row_batch, unpack_row_batch
from persia_hpc.transport.records import ALIGNMENT


def lay_out(batches: Sequence[RowBatch], multi: Sequence[str] = ()) -> tuple[Bytes, list[RowBatch]]:
    """Copies batches into one block with pages of its own; returns it, and the batches in it.

    A GPU can copy each of them as it is once the block is registered. multi: names of the multi-hot features.
    """
    packed = [
        [np.concatenate(a) if isinstance(a, list) else np.ascontiguousarray(a) for a in pack_row_batch(batch)]
        for batch in batches
    ]
    size = sum(_lines(array) for arrays in packed for array in arrays)
    block: Bytes = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
    laid, at = [], 0
    for batch, arrays in zip(batches, packed, strict=True):
        placed: list[Array] = []
        for array in arrays:
            place = block[at : at + array.nbytes]
            place[:] = array.reshape(-1).view(np.uint8)
            placed.append(place.view(array.dtype).reshape(array.shape))
            at += _lines(array)
        laid.append(unpack_row_batch(batch.step, batch.trainer, placed, multi))
    return block, laid


def _lines(array: Array) -> int:
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT
