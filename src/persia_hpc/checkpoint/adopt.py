"""Lets tables with a disk tier take a checkpoint's rows from disk where they are, without a copy of them.

The server compares the checksum of each record, keeps keys and stamps, and reads the rows that it needs from
the checkpoint's file later, which stays open until none of its rows is on disk any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array
from persia_hpc.durable import file_system
from persia_hpc.table_layout import TableLayout

from .cold import ColdFile
from .names import cold_numbers
from .parts import TOKEN, TablePart, reading
from .records import RECORDS, record_type

# File systems of this machine's own drives and memory.
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "overlay", "ramfs"}
LOCAL |= {"reiserfs", "tmpfs", "xfs", "zfs"}


class Adoption:
    """Knows which of a checkpoint's files a server's tables read rows from, for the next full checkpoint."""

    def __init__(
        self,
        directory: Path,
        manifest: Mapping[str, Any],
        server_rank: int,
        num_servers: int,
        check: Callable[[str], None],
    ):
        """Begins without files. check: lets a file's checksum be compared, of which rows are copied."""
        self._check = check
        self._directory, self._manifest = directory.resolve(), manifest
        self._rank = server_rank if num_servers == len(manifest["shards"]) else -1
        self._offsets: dict[str, dict[str, Array]] = {}  # of the files: of each table
        self._tokens: dict[str, int] = {}

    def fits(self, part: TablePart, layout: TableLayout, table: Table) -> bool:
        """Returns whether a table may read rows from the file of such a part.

        They must be records as its own, on a file system that its tier is on too, and there a file must stay
        readable after its name has gone: a local one. And its name must be text, as native code takes it.
        """
        disk, records = layout.config.disk, part.group.get(RECORDS)
        if disk is None or records is None or not table.record_bytes or records.dtype != record_type(table):
            return False
        path = part.group.file.filename
        device = _device(path)
        filters = records.id.get_create_plist().get_nfilters()
        return not filters and _is_text(path) and _device(disk.path) == device and _keeps_open_files(path)

    def copies(self, part: TablePart) -> None:
        """Is called for each part from which rows are copied, not adopted, which sees each one's checksum."""
        self._check(part.file_name)

    def adopt(self, part: TablePart, layout: TableLayout, table: Table) -> bool:
        """Lets a table take those rows that are its own from a part that fits; returns whether it has.

        Raises DataError for damage.
        """
        name = part.file_name
        rank, number = cold_numbers(name)
        whole = range(int(part.buckets[0]), int(part.buckets[-1]) + 1)
        known = rank == self._rank and whole == range(table.first_bucket, table.end_bucket)
        with reading(part.group):
            chunks, chunk_rows = _chunks(part.group[RECORDS])
            found = table.adopt_rows(
                part.group.file.filename,
                number if known else 0,
                chunks,
                chunk_rows,
                whole.start,
                part.offsets.astype(np.uint64),
                part.mask(),
            )
        if found and known:
            self._offsets.setdefault(name, {})[layout.name] = part.offsets
            self._tokens[name] = int(part.group.file.attrs[TOKEN])
        return found

    def files(self) -> list[ColdFile]:
        """Returns the files that the first full checkpoint may link."""
        notes = self._manifest["files"]
        return [
            ColdFile(cold_numbers(name)[1], self._directory / name, notes[name], offsets, self._tokens[name])
            for name, offsets in self._offsets.items()
        ]


def _chunks(records: h5py.Dataset) -> tuple[Array, int]:
    """Returns where in the file each so many records lie."""
    if records.chunks is None:
        return np.array([records.id.get_offset() or 0], np.uint64), max(1, len(records))
    (chunk_rows,) = records.chunks
    found: dict[int, int] = {}

    def note(chunk: Any) -> None:
        if chunk.byte_offset is not None:
            found[chunk.chunk_offset[0] // chunk_rows] = chunk.byte_offset

    if hasattr(records.id, "chunk_iter"):  # since HDF5 1.14
        records.id.chunk_iter(note)
    else:  # of which each call looks at all chunks up to its own
        for at in range(0, len(records), chunk_rows):
            note(records.id.get_chunk_info_by_coord((at,)))
    missing = sorted({*range(-(-len(records) // chunk_rows))} - {*found})
    if missing:
        raise ValueError(f"the file lacks {len(missing)} chunks of {RECORDS!r}, the first is {missing[0]}")
    return np.array([found[i] for i in range(len(found))], np.uint64), chunk_rows


def _is_text(path: str) -> bool:
    """Returns whether a path is UTF-8 on disk: another one can't be encoded so."""
    return path == path.encode(errors="ignore").decode()


def _device(path: str) -> int:
    return os.stat(path).st_dev


def _keeps_open_files(path: str) -> bool:
    """Returns whether a file is on a file system where it stays as it is while a process has it open.

    A file server's may go with its name or with the connection. What isn't known to be local counts as such.
    """
    return file_system(path) in LOCAL
