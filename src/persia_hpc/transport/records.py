"""What travels in a ring: a 64-byte header, a directory of the arrays, the arrays (each 64-byte aligned).

The bytes after the header are the *body*. A body too large for one ring entry travels in chunks: each entry
then carries the same header fields and its part of the body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import PersiaError, UserError

Array: TypeAlias = npt.NDArray[Any]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Spec: TypeAlias = tuple[npt.DTypeLike, Sequence[int]]

ALIGNMENT = 64
MAGIC = 0x50485243
VERSION = 1
MAX_DIMENSIONS = 2
MAX_ARRAYS = 0xFFFF

# magic, version, kind, sequence, step, tag, trainer, array count, flags, body bytes, chunk begin, chunk
# bytes; in native byte order: a peer of the other order shows as bad magic.
HEADER = struct.Struct("=IHHQQQIHHQQQ")
HEADER_BYTES = HEADER.size
PADDING_FLAG = 1

_ENTRY = "IIQQ"  # dtype code, number of dimensions, shape
_ENTRY_BYTES = struct.calcsize("=" + _ENTRY)
_DTYPES = [
    np.dtype(name)
    for name in (
        *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64"),
    )
]
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


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


def aligned(num_bytes: int) -> int:
    """The next multiple of 64."""
    return (num_bytes + ALIGNMENT - 1) & -ALIGNMENT


def memory_of(array: Any) -> memoryview:
    """The bytes of an array, C-contiguous, not empty (Any: numpy's stubs lack buffers before Python 3.12)."""
    return memoryview(array).cast("B")


def aligned_empty(num_bytes: int) -> Bytes:
    """Uninitialised uint8 memory on a 64-byte boundary."""
    buffer = np.empty(num_bytes + ALIGNMENT, np.uint8)
    shift = -buffer.ctypes.data % ALIGNMENT
    return buffer[shift : shift + num_bytes]


def body_layout(specs: Sequence[Spec]) -> tuple[bytes, list[int], int]:
    """Directory, offset of each array within the body, and size of the body, for arrays of (dtype, shape).

    Raises UserError for a dtype or a number of dimensions that records do not carry.
    """
    if not specs:
        return b"", [], 0
    if len(specs) > MAX_ARRAYS:
        raise UserError(f"a record carries at most {MAX_ARRAYS} arrays, got {len(specs)}; concatenate some")
    fields: list[int] = []
    offsets: list[int] = []
    end = aligned(len(specs) * _ENTRY_BYTES)
    for dtype_like, shape in specs:
        dtype = np.dtype(dtype_like)
        code = _CODES.get(dtype)
        if code is None:
            names = ", ".join(known.name for known in _DTYPES)
            raise UserError(
                f"records carry arrays of {names} (native byte order), got {dtype}; convert it first"
            )
        if len(shape) == 1:
            rows, columns = shape[0], 1
        elif len(shape) == MAX_DIMENSIONS:
            rows, columns = shape
        else:
            raise UserError(
                f"records carry arrays of one or two dimensions, got shape {tuple(shape)}; reshape it"
            )
        fields += (code, len(shape), rows, columns)
        offsets.append(end)
        end += aligned(rows * columns * dtype.itemsize)
    return struct.pack("=" + _ENTRY * len(specs), *fields), offsets, end


def views_at(buffer: Bytes, begin: int, specs: Sequence[Spec], offsets: Sequence[int]) -> list[Array]:
    """Arrays of these specs over a body that begins at byte `begin` of the buffer."""
    return [
        np.ndarray(tuple(shape), dtype, buffer, begin + offset)
        for (dtype, shape), offset in zip(specs, offsets, strict=True)
    ]


def parse_body(buffer: Bytes, begin: int, num_arrays: int, body_bytes: int) -> list[Array]:
    """The arrays of a body that begins at byte `begin` of the buffer, as views.

    Raises PersiaError if the directory contradicts the body's size.
    """
    if num_arrays == 0:
        return []
    arrays: list[Array] = []
    end = aligned(num_arrays * _ENTRY_BYTES)
    if end > body_bytes:
        raise PersiaError(f"got a body of {body_bytes} bytes, expected {end} or more for {num_arrays} arrays")
    fields = struct.unpack_from("=" + _ENTRY * num_arrays, memory_of(buffer), begin)
    for i in range(0, 4 * num_arrays, 4):
        code, num_dimensions, rows, columns = fields[i : i + 4]
        if code >= len(_DTYPES) or not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise PersiaError(
                f"array {i // 4} has dtype code {code}, {num_dimensions} dimensions: a damaged directory"
            )
        dtype = _DTYPES[code]
        offset, end = end, end + aligned(rows * columns * dtype.itemsize)
        if end > body_bytes:
            raise PersiaError(
                f"array {i // 4} ends at byte {end} of a body of {body_bytes}: a damaged directory"
            )
        shape = (rows,) if num_dimensions == 1 else (rows, columns)
        arrays.append(np.ndarray(shape, dtype, buffer, begin + offset))
    return arrays


def check_fields(kind: int, step: int, trainer: int, tag: int) -> None:
    """Raises UserError for header fields out of range."""
    if not (0 <= kind <= Kind.CLOSE and 0 <= step < 2**64 and 0 <= trainer < 2**32 and 0 <= tag < 2**64):
        raise UserError(
            f"got record fields kind={kind}, step={step}, trainer={trainer}, tag={tag}, "
            "expected 16, 64, 32 and 64 bits without sign"
        )


def spec_of(entry: Array | list[Array]) -> Spec:
    """The dtype and shape of an array, or of the concatenation of a list of arrays along axis 0."""
    if not isinstance(entry, list):
        if not isinstance(entry, np.ndarray) or not entry.flags.c_contiguous:
            raise UserError(f"records carry C-contiguous numpy arrays, got {_describe(entry)}; copy it first")
        return entry.dtype, entry.shape
    if not entry:
        raise UserError("got an empty list of arrays, expected at least one, for dtype and shape")
    specs = [spec_of(part) for part in entry]
    dtype, shape = specs[0]
    for part, (other_dtype, other_shape) in zip(entry, specs, strict=True):
        if other_dtype != dtype or len(other_shape) != len(shape) or other_shape[1:] != shape[1:]:
            raise UserError(
                "arrays sent as one must agree in dtype and in all but the first dimension, "
                f"got {_describe(entry[0])} and {_describe(part)}"
            )
    return dtype, (sum(part.shape[0] for part in entry), *shape[1:])


def _describe(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype}{list(value.shape)}" + ("" if value.flags.c_contiguous else " (not C-contiguous)")
