"""Writes and maps a server's part of a version or base: rows of its tables in one file.

The file is the arrays, each at a multiple of 64 bytes; then a header (JSON), which says where they are; then
a line of 32 bytes that names the format and the length of the header.

Shapes: n rows, m removed, c cells + 1, W bytes of a row.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from persia_hpc._native import make_cells
from persia_hpc.arrays import Array
from persia_hpc.errors import DataError

_MAGIC = b"persia-hpc rows 1 "
_LINE = 32  # bytes of the last line
_ALIGN = 64
_BYTES_AT_ONCE = 8 << 20  # of a checksum: others may have the file's pages in between
_NONE = np.empty(0, np.uint64)


@dataclass(frozen=True)
class PartTable:
    """Holds a table's rows in a part.

    Shapes:
    keys: uint64 [n]. rows: uint8 [n, W]. removed: uint64 [m], keys whose rows went before those of `keys`
    came. cells: uint32 [c], by which a key is found in a base, see `_native.make_cells`.
    """

    keys: Array
    rows: Array
    removed: Array
    cells: Array | None
    shift: int


class PartFile:
    """Is a part that is being written; `close` completes it."""

    def __init__(self, path: Path) -> None:
        """Begins the file. Raises OSError if it can't be written, as all methods do."""
        self._file = path.open("wb", buffering=0)
        self._size = self._crc = 0
        self._tables: list[dict[str, Any]] = []

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add_table(
        self,
        name: str,
        width: int,
        pieces: Iterable[tuple[Array, Array]],
        removed: Array = _NONE,
        *,
        index: bool = False,
    ) -> None:
        """Adds a table. pieces: keys and rows, some at a time; keys that ascend are indexed with `index`."""
        rows_at, keys = self._size, []
        for of, rows in pieces:
            self._write(rows)
            keys.append(of)
        self._align()
        all_keys = np.concatenate(keys) if keys else _NONE
        cells, shift = make_cells(all_keys) if index else (np.empty(0, np.uint32), 0)
        places = {"rows": rows_at, "keys": self._add(all_keys)}
        places |= {"removed": self._add(removed), "cells": self._add(cells)}
        counts = {"rows": len(all_keys), "removed": len(removed), "cells": len(cells)}
        entry = {"name": name, "width": width, "shift": shift, "counts": counts, "places": places}
        self._tables.append(entry)

    def close(self) -> dict[str, int]:
        """Writes the header; returns what the manifest notes of the file: bytes and crc32."""
        header = json.dumps(self._tables).encode()
        line = _MAGIC + f"{len(header):>{_LINE - len(_MAGIC) - 1}}\n".encode()
        self._write(np.frombuffer(header + line, np.uint8))
        self._file.close()
        return {"bytes": self._size, "crc32": self._crc}

    def _add(self, array: Array) -> int:
        at = self._size
        self._write(array)
        self._align()
        return at

    def _align(self) -> None:
        self._write(np.zeros(-self._size % _ALIGN, np.uint8))

    def _write(self, array: Array) -> None:
        if not array.size:
            return
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        while len(data):
            data = data[self._file.write(data) :]


def map_part(path: Path, note: Mapping[str, Any], *, check: bool = True) -> dict[str, PartTable]:
    """Maps a part; returns its tables by name. Their memory is the file's, shared with others who map it.

    note: what the manifest says of the file. check: its checksum is compared, for which all of it is read.
    Raises DataError if the file isn't what was noted, FileNotFoundError if it is gone.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != note["bytes"]:
                raise DataError(f"{path} is damaged: it has {size} bytes, expected {note['bytes']}")
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error
    whole = np.frombuffer(mapped, np.uint8)
    if check:
        crc = 0
        for begin in range(0, size, _BYTES_AT_ONCE):
            crc = zlib.crc32(whole[begin : begin + _BYTES_AT_ONCE].data, crc)
        if crc != note["crc32"]:
            raise DataError(f"{path} is damaged: its checksum is not the manifest's")
    try:
        return dict(_tables(whole))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"{path} is not a part of a version: {' '.join(str(error).split())}") from error


def _tables(whole: Array) -> Iterator[tuple[str, PartTable]]:
    line = whole[-_LINE:].tobytes()
    if not line.startswith(_MAGIC):
        raise ValueError(f"it ends with {line[: len(_MAGIC)]!a}, expected {_MAGIC!a}")
    end = len(whole) - _LINE - int(line[len(_MAGIC) :])
    data = whole[: max(0, end)]
    for entry in json.loads(whole[max(0, end) : -_LINE].tobytes()):
        counts, places, width = entry["counts"], entry["places"], entry["width"]
        keys = _array(data, np.uint64, counts["rows"], places["keys"])
        rows = _array(data, np.uint8, counts["rows"] * width, places["rows"]).reshape(-1, width)
        removed = _array(data, np.uint64, counts["removed"], places["removed"])
        cells = _array(data, np.uint32, counts["cells"], places["cells"]) if counts["cells"] else None
        yield str(entry["name"]), PartTable(keys, rows, removed, cells, int(entry["shift"]))


def _array(data: Array, dtype: type[np.generic], count: int, at: int) -> Array:
    size = count * np.dtype(dtype).itemsize
    if not (size >= 0 and at >= 0 and at % _ALIGN == 0 and at + size <= len(data)):
        raise ValueError("its arrays lie outside of it")
    found: Array = data[at : at + size].view(dtype)
    return found
