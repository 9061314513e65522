"""Defines what travels in a ring: a header and arrays (the format: native/include/persia/ring.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from persia_hpc.arrays import Array, Bytes

Spec: TypeAlias = tuple[npt.DTypeLike, Sequence[int]]

ALIGNMENT = 64
CLOSE = 0xFFFF  # the kind of a ring's last record; all others are the business of those who send


class Record:
    """Holds one record as the consumer sees it. Its sender decides what the four numbers mean.

    `arrays` are views into the ring (one or two dimensions, 64-byte aligned, C-contiguous), valid until
    `release()`; the consumer may write into them. The arrays of a record that came in chunks lie in private
    memory, which is used again after the release.
    """

    __slots__ = ("_release", "arrays", "kind", "step", "tag", "trainer")

    def __init__(
        self,
        kind: int,
        step: int,
        trainer: int,
        tag: int,
        arrays: list[Array],
        release: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        self.step = step
        self.trainer = trainer
        self.tag = tag
        self.arrays = arrays
        self._release = release

    def release(self) -> None:
        """Gives the room back, and the views with it. Records may be released in any order, and twice."""
        self.arrays = []
        release, self._release = self._release, None
        if release is not None:
            release()

    def detach(self) -> Record:
        """Copies the arrays to memory of their own and gives the room back at once; returns itself."""
        if self._release is not None:
            arrays = [array.copy() for array in self.arrays]
            self.release()
            self.arrays = arrays
        return self

    def __repr__(self) -> str:
        shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in self.arrays)
        return (
            f"Record(kind={self.kind}, step={self.step}, trainer={self.trainer}, tag={self.tag}, [{shapes}])"
        )


@dataclass(slots=True)
class RingCounters:
    """Counts what one end of a ring has seen: complete records, bytes with headers, records without room."""

    records: int = 0
    bytes: int = 0
    full_waits: int = 0


def memory_of(array: Any) -> memoryview:
    """Returns the bytes of an array, C-contiguous, not empty.

    The array is `Any` because numpy's stubs lack buffers before Python 3.12.
    """
    return memoryview(array).cast("B")


def aligned_empty(num_bytes: int) -> Bytes:
    """Returns uninitialised uint8 memory on a 64-byte boundary."""
    buffer = np.empty(num_bytes + ALIGNMENT, np.uint8)
    shift = -buffer.ctypes.data % ALIGNMENT
    return buffer[shift : shift + num_bytes]
