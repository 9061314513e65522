"""Checks the values of one server's part of a table, column by column, for `checkpoint verify`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.table_layout import TableLayout

from .listing import count_text
from .tables import bucket_of

_BYTES_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class Part:
    """Describes one server's part of a table.

    offsets: None if they are damaged. base_step: the step of the checkpoint that this part holds the changes
    since, 0 if there is none.
    """

    group: h5py.Group
    spec: TableLayout
    buckets: Array
    offsets: Array | None
    base_step: int


class Check:
    """Checks a column that may have any values: all of it is read, which finds damage."""

    nonfinite_rows = 0

    def add(self, at: int, values: Array) -> None:
        """Looks at the entries from `at` on; called for all of them in order."""

    def problem(self) -> str:
        """Returns what is wrong with the entries so far; '' if nothing is."""
        return ""


class _KeysCheck(Check):
    """Checks that keys lie in the buckets that they belong to."""

    def __init__(self, part: Part, offsets: Array):
        self._part, self._offsets, self._wrong = part, offsets, 0

    def add(self, at: int, values: Array) -> None:
        index = np.searchsorted(self._offsets, np.arange(at, at + len(values)), side="right") - 1
        here = bucket_of(values, self._part.spec.num_buckets)
        self._wrong += int((here != self._part.buckets[index]).sum())

    def problem(self) -> str:
        return f"{count_text(self._wrong, 'key')} in another bucket than its own" if self._wrong else ""


class _RowsCheck(Check):
    """Counts rows that are not finite: training diverged, but the checkpoint is not damaged."""

    def add(self, at: int, values: Array) -> None:
        self.nonfinite_rows += int((~np.isfinite(values).all(axis=1)).sum())


class _RemovedCheck(Check):
    """Checks that removed keys ascend."""

    def __init__(self) -> None:
        self._ascends = True
        self._last: np.uint64 | None = None

    def add(self, at: int, values: Array) -> None:
        self._ascends &= not (values[1:] < values[:-1]).any()
        self._ascends &= self._last is None or values[0] >= self._last
        self._last = values[-1]

    def problem(self) -> str:
        return "" if self._ascends else "removed keys don't ascend"


class _StampsCheck(Check):
    """Checks that rows of an incremental checkpoint were used after its base."""

    def __init__(self, base_step: int):
        self._base_step, self._old = base_step, 0

    def add(self, at: int, values: Array) -> None:
        self._old += int((values <= self._base_step).sum())

    def problem(self) -> str:
        if not self._old:
            return ""
        return f"{count_text(self._old, 'row')} not used since the base, step {self._base_step}"


def check_of(name: str, part: Part) -> Check:
    """Returns the check for the values of a column."""
    if name == "keys" and part.offsets is not None:
        return _KeysCheck(part, part.offsets)
    if name == "rows":
        return _RowsCheck()
    if name == "removed":
        return _RemovedCheck()
    if name == "stamps" and "removed" in part.group:
        return _StampsCheck(part.base_step)
    return Check()


def pieces(dataset: h5py.Dataset) -> Iterator[tuple[int, Array]]:
    """Yields a dataset's entries in order, some at a time, each piece with the index of its first entry."""
    entry_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))
    at_once = max(1, _BYTES_AT_ONCE // max(1, entry_bytes))
    for at in range(0, len(dataset), at_once):
        yield at, dataset[at : at + at_once]
