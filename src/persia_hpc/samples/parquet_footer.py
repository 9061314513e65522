"""Reads what the footer of a Parquet file says of its row groups, which polars doesn't tell.

The footer is one Thrift struct in the compact protocol; the numbers below are fields of Parquet's format
(`FileMetaData`, `RowGroup`, `ColumnChunk`, `ColumnMetaData` in parquet.thrift).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
ENCRYPTED = b"PARE"
_MOST_DEPTH = 16

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits


@dataclass(frozen=True)
class Footer:
    """Holds the rows of each row group, and how many values each leaf column has, by the name of the column.

    The values of a column of lists are those in the lists, and one for each list that is empty or null.
    """

    row_groups: tuple[int, ...]
    num_values: dict[str, int]


def read_footer(path: str) -> Footer:
    """Returns what the footer of a Parquet file says.

    Raises ValueError, which says what is wrong, for a file that isn't whole, and OSError.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if len(tail) < 8 or tail[4:] not in (MAGIC, ENCRYPTED):
            raise ValueError(f"got {tail[4:]!r} as its last bytes, expected {MAGIC!r}: its end is missing")
        if tail[4:] == ENCRYPTED:
            raise ValueError("its footer is encrypted")
        (length,) = struct.unpack("<I", tail[:4])
        if length + 12 > size:
            raise ValueError(f"got a footer of {length} bytes in a file of {size}")
        file.seek(size - 8 - length)
        data = file.read(length)
    try:
        return _footer_of(_Compact(data).fields(), size - 8 - length)
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise ValueError(f"its footer can't be understood ({type(error).__name__})") from error


def _footer_of(metadata: dict[int, Any], end: int) -> Footer:
    """Returns what the metadata say of values that end before byte `end`.

    Raises ValueError if they contradict themselves: polars would say so on the screen, and in other words.
    """
    groups: list[dict[int, Any]] = metadata.get(4, [])
    rows = tuple(int(group[3]) for group in groups)
    if min(rows, default=0) < 0 or sum(rows) != metadata[3]:
        raise ValueError(f"its row groups have {sum(rows)} rows, but its footer says {metadata[3]}")
    num_values: dict[str, int] = {}
    for number, (group, num_rows) in enumerate(zip(groups, rows, strict=True)):
        for chunk in group[1]:
            column = chunk[3]
            name = column[3][0].decode()  # of the column itself; what follows are parts of lists
            size, begins = column[7], (column[9], column.get(11) or column[9])  # of values, of a dictionary
            if not all(len(MAGIC) <= begin <= begin + size for begin in begins) or min(begins) + size > end:
                raise ValueError(f"{name}: row group {number} isn't inside of the file")
            if column[5] < num_rows:
                raise ValueError(f"{name}: row group {number} has {column[5]} values for {num_rows} rows")
            num_values[name] = num_values.get(name, 0) + int(column[5])
    return Footer(rows, num_values)


class _Compact:
    """Decodes Thrift's compact protocol; structs become dictionaries by the number of the field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, depth: int = 0) -> dict[int, Any]:
        """Returns the fields of the struct that begins here."""
        found: dict[int, Any] = {}
        number = 0
        while True:
            head = self._data[self._at]
            self._at += 1
            if head == 0:
                return found
            kind, step = head & 15, head >> 4
            number = number + step if step else self._integer()
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            begin, self._at = self._at_after_length()
            return self._data[begin : self._at]
        if depth >= _MOST_DEPTH:
            raise ValueError("its footer is nested too deeply")
        if kind == _STRUCT:
            return self.fields(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind in (_TRUE, _FALSE, _BYTE):  # an element of a list
            self._at += 1
            return self._data[self._at - 1]
        if kind == _DOUBLE:
            self._at += 8
            return struct.unpack_from("<d", self._data, self._at - 8)[0]
        raise ValueError(f"its footer has a field of the unknown type {kind}")

    def _at_after_length(self) -> tuple[int, int]:
        length = self._unsigned()
        if length > len(self._data) - self._at:
            raise ValueError("its footer ends within a text")
        return self._at, self._at + length

    def _list(self, depth: int) -> list[Any]:
        head = self._data[self._at]
        self._at += 1
        size, kind = head >> 4, head & 15
        if size == 15:
            size = self._unsigned()
        if size > len(self._data) - self._at:  # each element takes a byte at least
            raise ValueError("its footer ends within a list")
        return [self._value(kind, depth) for _ in range(size)]

    def _integer(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)

    def _unsigned(self) -> int:
        result = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number of too many digits")
