"""Makes tables, those with a disk tier too, and counts what goes to their disks and comes back."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from persia_hpc._native import DiskError, Table, TableConfig
from persia_hpc.errors import UserError
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
    try:
        return Table(native)
    except DiskError as error:
        raise UserError(f"table {layout.name!r}: {error}; see tables.{layout.name}.disk.path") from None


class DiskTraffic:
    """Counts the rows of a server's tables that are on disk, and those that went there and came back."""

    def __init__(self, tables: Sequence[Table | None]) -> None:
        """Begins to count; of tables without a disk tier there is nothing to count."""
        self.used = [t for t in tables if t is not None and t.has_disk]
        self._before = (0, 0)

    def rows(self) -> int:
        """Returns the rows that are on disk now."""
        return sum(t.cold_rows for t in self.used)

    def bytes(self) -> int:
        """Returns the bytes that files of rows have in use now."""
        return sum(t.disk_bytes for t in self.used)

    def since(self) -> tuple[int, int]:
        """Returns how many rows went to disk, and came back, since the last call."""
        to_disk = sum(t.to_disk_rows for t in self.used)
        from_disk = sum(t.from_disk_rows for t in self.used)
        before, self._before = self._before, (to_disk, from_disk)
        return to_disk - before[0], from_disk - before[1]
