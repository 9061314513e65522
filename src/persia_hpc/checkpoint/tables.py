"""Defines how a server's file holds tables: their groups, what these say, the bucket in which a key lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.errors import DataError
from persia_hpc.samples.attributes import is_count
from persia_hpc.samples.containment import StorageError, check_stored
from persia_hpc.samples.names import open_to_read
from persia_hpc.table_layout import TableLayout

from .manifest import unreadable
from .records import RECORDS

NAME = "table"  # attribute of a group whose own name had to be another than the table's
_MOST = 1 << 32  # buckets of a table, and numbers of a row: far beyond any
_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "dim": lambda value: is_count(value) and 0 < value < _MOST,
    "num_buckets": lambda value: is_count(value) and 0 < value < _MOST,
    "optimizer": lambda value: isinstance(value, str),
    "eviction": lambda value: isinstance(value, str),
    "complete": lambda value: isinstance(value, np.bool_),
}


def table_attributes(layout: TableLayout) -> dict[str, Any]:
    """Returns the attributes of a table's HDF5 group that must be those of the table that reads it."""
    return {
        "dim": layout.dim,
        "num_buckets": layout.num_buckets,
        "optimizer": layout.config.optimizer["name"],
        "eviction": layout.config.eviction,
    }


def bucket_of(keys: Array, num_buckets: int) -> Array:
    """Returns the bucket of each key: its highest bits.

    num_buckets: a power of two.
    Shapes: keys uint64 [n]; returns int64 [n].
    """
    shift = np.uint64(64 - (num_buckets.bit_length() - 1))
    # Two shifts, because one by 64 would be undefined.
    return ((keys >> np.uint64(1)) >> (shift - np.uint64(1))).astype(np.int64)


def file_name(table: str) -> str:
    """Returns a name for a table that is one in a directory or an HDF5 group too.

    Different tables have different ones; all but those with "/" or "%" in them, and ".", keep theirs.
    """
    name = table.replace("%", "%25").replace("/", "%2F")
    return "%2E" if name == "." else name


def make_group(shard: h5py.File, table: str) -> h5py.Group:
    """Makes the group of a table."""
    group = shard.create_group(file_name(table))
    if file_name(table) != table:
        group.attrs[NAME] = table
    return group


def open_shard(path: Path) -> h5py.File:
    """Opens a server's file to read.

    Raises DataError if it can't be opened, or refers to another file.
    """
    try:
        return open_to_read(str(path))
    except StorageError as error:
        raise DataError(f"{error.problem}; use an older checkpoint") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise unreadable(path, error) from error


def groups_of(shard: h5py.Group) -> dict[str, h5py.Group]:
    """Returns the group of each table in a server's file, or in a group of it.

    Raises DataError for what no run writes, such as a link to another file: it is not followed.
    """
    try:
        return dict(_groups(shard))
    except StorageError as error:
        raise DataError(f"{shard.file.filename}: {error.problem}; use an older checkpoint") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise unreadable(shard.file.filename, error) from error


def _groups(parent: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    for name in parent:
        if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{parent.name} has a link {name!r} in place of a table or dataset")
        entry = parent[name]
        if isinstance(entry, h5py.Group):
            # Older files have the table "a/b" as group b of group a.
            if len(entry.attrs):
                _check_attributes(entry)
                yield str(entry.attrs.get(NAME, entry.name[1:])), entry
            yield from _groups(entry)
        elif parent.name == "/":
            raise ValueError(f"{name!r} is not the group of a table")
        elif not isinstance(entry, h5py.Dataset) or not _holds_numbers(name, entry.dtype):
            raise ValueError(f"{parent.name}: got something else than numbers for column {name!r}")
        else:
            check_stored(entry.name, entry.id)


def _holds_numbers(name: str, kind: np.dtype[Any]) -> bool:
    if name != RECORDS or kind.fields is None:
        return kind.kind in "iuf"
    return all(field.base.kind in "iuf" for field, *_ in kind.fields.values())


def _check_attributes(group: h5py.Group) -> None:
    """Checks the types of a table's attributes, but not whether any are missing.

    Raises ValueError for the first that is wrong.
    """
    for name, fits in _ATTRIBUTES.items():
        value = group.attrs.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"{group.name}: got {name} {value!a}, which it can't be")
