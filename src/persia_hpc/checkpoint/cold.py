"""Writes rows of disk tiers into files that the full checkpoints of a run share, so that each is read once.

A checkpoint puts the rows that went to disk since the last one into a new file, which never changes, and
takes the earlier files over by hard links. Where a link can't be made, or most rows of a file are gone, the
rows are copied anew. What a checkpoint has of each file is a mask, see parts.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import Table
from persia_hpc.arrays import Array

from . import files
from .parts import packed

MOST_FILES = 8  # of a server in a checkpoint: all are open while it is read


@dataclass(frozen=True)
class ColdFile:
    """Describes a file of rows from disk that the last full checkpoint has.

    offsets: of each table, where the rows of its buckets begin, and the end. token: what the file and all
    masks of it have in common, and no other file has: names and sizes are alike in any two runs.
    """

    number: int
    path: Path
    note: Mapping[str, Any]
    offsets: Mapping[str, Array]
    token: int

    @property
    def rows(self) -> int:
        """Returns the rows of all tables that were written into it."""
        return sum(int(offsets[-1]) for offsets in self.offsets.values())


@dataclass
class ColdFiles:
    """Holds what a server knows of the files of its rows from disk, as long as its tables live."""

    newest: list[ColdFile] = field(default_factory=list)
    last: int = 0  # number

    def take_over(self, directory: Path, tables: Sequence[Table]) -> tuple[list[ColdFile], int]:
        """Links the files that are still worth it into another checkpoint; the tables forget the others.

        Returns them, and a number for the next file.
        """
        self.last += 1
        live: dict[int, int] = {}
        for table in tables:
            for number, count in table.copied_rows().items():
                live[number] = live.get(number, 0) + count
        taken = [
            linked for file in chosen(self.newest, live) if (linked := _linked(file, directory)) is not None
        ]
        for table in tables:
            table.keep_copies([file.number for file in taken])
        return taken, self.last

    def began(self, found: list[ColdFile]) -> None:
        """Is called when a start has left rows in these files."""
        self.newest = found
        self.last = max((file.number for file in found), default=0)

    def written(self, newest: list[ColdFile]) -> None:
        """Is called when a checkpoint has been written that has these files."""
        self.newest = newest


def chosen(found: Sequence[ColdFile], live: Mapping[int, int]) -> list[ColdFile]:
    """Returns the files that the next checkpoint takes over; what it needs of the others is copied anew.

    live: rows of each file that are still on disk.
    """
    worth = [file for file in found if 2 * live.get(file.number, 0) >= file.rows]
    if len(worth) >= MOST_FILES:  # the smaller half becomes part of the next
        worth = sorted(worth, key=lambda file: live[file.number])[-(MOST_FILES // 2) :]
    return worth


def _linked(file: ColdFile, directory: Path) -> ColdFile | None:
    """Returns the file as the checkpoint in `directory` has it, None if there is no link to it."""
    was, path = file.path.parent.with_suffix("") / file.path.name, directory / file.path.name
    try:
        if not was.parent.parent.samefile(directory.parent):  # of another run, which this one began with
            return None
        os.link(was, path, follow_symlinks=False)
    except OSError:  # gone, as no checkpoint came of it, or a file system without links
        return None
    if path.is_symlink() or path.stat().st_size != file.note["bytes"]:
        path.unlink()
        return None
    files.note_part(path, file.note)
    return replace(file, path=path)


class ColdTable:
    """Notes which rows of a table a checkpoint has in which files, a few buckets at a time in their order."""

    def __init__(self, name: str, known: Sequence[ColdFile], first_bucket: int):
        """Begins without rows. known: the files that were taken over."""
        self._first = first_bucket
        self._known = {f.number: (f, f.offsets[name]) for f in known if name in f.offsets}
        self._num_rows = dict.fromkeys(self._known, 0)  # of the table in this checkpoint
        self._masks = {
            number: np.zeros(-(-int(offsets[-1]) // 8), np.uint8)
            for number, (_, offsets) in self._known.items()
        }

    def add(self, begin: int, end: int, places: Mapping[str, Array]) -> None:
        """Takes what `Table.copy_buckets` has given for buckets [begin, end)."""
        begin, end = begin - self._first, end - self._first
        buckets = np.repeat(np.arange(begin, end), places["known"].astype(np.int64))
        for number in np.unique(places["files"]).tolist():
            offsets = self._known[number][1]
            which = places["files"] == number
            self._num_rows[number] += int(which.sum())
            low = int(offsets[begin]) // 8 * 8
            live = np.zeros(int(offsets[end]) - low, bool)
            live[offsets[buckets[which]] + places["numbers"][which] - low] = True
            bits = packed(live)
            self._masks[number][low // 8 : low // 8 + len(bits)] |= bits

    def masks(self) -> Iterator[tuple[str, Array, int, int]]:
        """Yields what `write_mask` needs of the files taken over that hold rows of the table."""
        for number, mask in self._masks.items():
            if self._num_rows[number]:
                file = self._known[number][0]
                yield file.path.name, mask, self._num_rows[number], file.token
