"""What travels in a ring: fields of a header, and arrays (the format: native/include/persia/ring.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint64]
Spec: TypeAlias = tuple[npt.DTypeLike, Sequence[int]]

ALIGNMENT = 64
SPLITS = ("train", "valid", "test")  # an EVALUATE record names a split by its place here


class Kind(IntEnum):
    """What a record asks or carries; the ring itself knows only CLOSE."""

    # worker <-> server
    PULL = 1
    ROWS = 2
    PUSH = 3
    LOOKUP = 4
    LOOKUP_ROWS = 5
    # worker <-> trainer
    FEED = 6
    FEED_EVALUATE = 7
    GRADIENTS = 8
    # commands of trainer 0, passed on to servers where they matter
    SEGMENT = 9
    SEGMENT_END = 10
    EVALUATE = 11
    CHECKPOINT = 12
    CHECKPOINT_DONE = 13
    STOP_REQUEST = 14
    ISSUED = 15
    STOP_AT = 16
    # any rank to trainer 0: somebody wants the run to stop; the tag is the signal
    STOP_SIGNAL = 17
    CHECKPOINT_MARKED = 18
    # trainer 0 to workers: the files that are trained on next
    PORTION = 19
    CLOSE = 0xFFFF


class Record:
    """One record as the consumer sees it.

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
        """Gives the room back, and the views with it. In any order; a second time is harmless."""
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
    """What one end of a ring has seen: complete records, bytes with headers, records that found no room."""

    records: int = 0
    bytes: int = 0
    full_waits: int = 0


def memory_of(array: Any) -> memoryview:
    """The bytes of an array, C-contiguous, not empty (Any: numpy's stubs lack buffers before Python 3.12)."""
    return memoryview(array).cast("B")


def aligned_empty(num_bytes: int) -> Bytes:
    """Uninitialised uint8 memory on a 64-byte boundary."""
    buffer = np.empty(num_bytes + ALIGNMENT, np.uint8)
    shift = -buffer.ctypes.data % ALIGNMENT
    return buffer[shift : shift + num_bytes]
