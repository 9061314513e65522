"""Makes tables, those with a disk tier too, and counts what goes to their disks and comes back."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Sequence

from persia_hpc._native import DiskError, Table, TableConfig
from persia_hpc.errors import UserError
from persia_hpc.printable import say
from persia_hpc.table_layout import TableLayout


def make_table(layout: TableLayout, native: TableConfig) -> Table:
    """Returns an empty table.

    Raises UserError if it can't have a file where its rows beyond the capacity are to go.
    """
    disk = layout.config.disk
    if disk is not None and not os.path.isdir(disk.path):
        raise UserError(
            f"tables.{layout.name}.disk.path = {disk.path!r}: there is no such directory on "
            f"{socket.gethostname()}; make it there, or name another"
        )
    if disk is not None:
        _allow_open_files()
    try:
        return Table(native)
    except DiskError as error:
        raise UserError(f"table {layout.name!r}: {error}; see tables.{layout.name}.disk.path") from None


def _allow_open_files() -> None:
    """Lets this process have as many files open as it may: each file that a table reads takes up to three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # then those that it has must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class DiskTraffic:
    """Counts the rows of a server's tables that are on disk, and those that went there and came back.

    problem: why a disk took no more rows, of a table whose rows stay in memory then and whose run must end.
    """

    def __init__(self, layouts: Sequence[TableLayout], tables: Sequence[Table | None]) -> None:
        """Begins to count; of tables without a disk tier there is nothing to count."""
        pairs = zip(layouts, tables, strict=True)
        self._watched = [(layout, t) for layout, t in pairs if t is not None and t.has_disk]
        self.used = [table for _, table in self._watched]
        self.problem: str | None = None
        self._before = (0, 0, 0)

    def rows(self) -> int:
        """Returns the rows that are on disk now."""
        return sum(t.cold_rows for t in self.used)

    def bytes(self) -> int:
        """Returns the bytes that files of rows have in use now."""
        return sum(t.disk_bytes for t in self.used)

    def since(self) -> tuple[int, int, int]:
        """Returns how many rows went to disk, came back, and found no room there, since the last call.

        The first time that a table's disk takes no more it says so, or notes it as the `problem`.
        """
        self._watched = [
            (layout, table) for layout, table in self._watched if not self._is_full(layout, table)
        ]
        now = (
            sum(t.to_disk_rows for t in self.used),
            sum(t.from_disk_rows for t in self.used),
            sum(t.disk_full_rows for t in self.used),
        )
        to_disk, from_disk, full = (n - b for n, b in zip(now, self._before, strict=True))
        self._before = now
        return to_disk, from_disk, full

    def _is_full(self, layout: TableLayout, table: Table) -> bool:
        text = table.disk_problem
        if not text:
            return False
        assert layout.config.disk is not None
        if layout.config.disk.on_full == "evict":
            say(f"table {layout.name!r}: {text}; rows that it can't take are dropped (disk.on_full)")
        elif self.problem is None:
            self.problem = f"table {layout.name!r}: {text}"
        return True
