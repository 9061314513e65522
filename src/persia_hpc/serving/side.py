"""Holds one version of an export directory: its tables and its dense part, in mapped files."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persia_hpc._native import ServedTable
from persia_hpc.config import Config
from persia_hpc.errors import DataError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout

from .names import DENSE
from .parts import PartTable

Parts = list[dict[str, PartTable]]  # of each server, by table


@dataclass(frozen=True)
class Served:
    """Says what the tables of a base are.

    export: the id of the run's start that wrote it, since another run's numbers may be the same.
    """

    export: str
    number: int
    rows: str
    config: Config
    schema: DatasetSchema
    layout: Layout
    encoding: Mapping[str, Any] | None


class Side:
    """Is a version, or nothing yet. Whoever uses or changes it holds its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version: Mapping[str, Any] = {}  # its manifest
        self.tables: list[ServedTable] = []  # in the order of the layout
        self._served: Served | None = None
        self._dense: memoryview | None = None
        self._more: Any = None

    @property
    def number(self) -> int:
        """Returns the version's number, 0 before there is one."""
        return int(self.version.get("version", 0))

    @property
    def served(self) -> Served:
        """Returns what the tables are."""
        assert self._served is not None
        return self._served

    @property
    def more(self) -> Any:
        """Returns what a user keeps with the version; None at first."""
        return self._more

    def keep(self, more: Any) -> None:
        """Keeps something of a user's with the version."""
        self._more = more

    def is_on(self, export: str, base: int) -> bool:
        """Returns whether the tables are those of a base and versions since."""
        return self._served is not None and (self._served.export, self._served.number) == (export, base)

    def drop(self) -> None:
        """Forgets the tables, which may be half-way to another version."""
        self._served, self.version = None, {}

    def begin(self, served: Served, parts: Parts) -> None:
        """Takes the rows of a base.

        Raises ValueError, with the table's name, for rows that don't fit.
        """
        self.drop()
        self.tables = [ServedTable(served.rows, table.dim) for table in served.layout.tables]
        for layout, table in zip(served.layout.tables, self.tables, strict=True):
            for part in (each[layout.name] for each in parts if layout.name in each):
                if part.cells is None:
                    raise ValueError(f"table {layout.name!r}: its keys have no index")
                table.add_part(part.keys, part.cells, part.shift, part.rows)
        self._served = served

    def add(self, parts: Parts) -> None:
        """Takes the changes of the next version.

        Raises ValueError for rows that don't fit.
        """
        for layout, table in zip(self.served.layout.tables, self.tables, strict=True):
            for part in (each[layout.name] for each in parts if layout.name in each):
                table.add_changes(part.keys, part.rows, part.removed)

    def become(self, version: Mapping[str, Any], dense: memoryview | None) -> None:
        """Takes note of which version the tables are now, and its dense part."""
        self.version, self._dense = version, dense

    def dense(self) -> bytes:
        """Returns the dense part, once its checksum is the manifest's.

        Raises DataError if it isn't, or there is none.
        """
        note = self.version["files"].get(DENSE)
        if self._dense is None or note is None:
            raise DataError(f"version {self.number} has no dense part")
        content = bytes(self._dense)
        if zlib.crc32(content) != note["crc32"]:
            raise DataError(
                f"{DENSE} of version {self.number} is damaged: its checksum is not the manifest's"
            )
        return content
