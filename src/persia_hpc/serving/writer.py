"""Writes one server's part of versions and bases, in threads, while training continues.

Before the first version all rows are written, bucket by bucket, while they go on changing: a *base*. It is of
no single moment, but what changed since its begin is in the version after it, which makes it one. Later bases
are made of the files of the base before and of the versions since; the tables have no part in that.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from persia_hpc._native import ServedTable, Table, encode_served
from persia_hpc.arrays import Array
from persia_hpc.table_layout import TableLayout

from .names import part_name
from .parts import PartFile, PartTable, map_part
from .requests import ExportReport, ExportRequest

if TYPE_CHECKING:
    from persia_hpc.parameter_server.engine import ParameterServer

NICE = 10  # how far threads that write bases step back behind training
_ROWS_AT_ONCE = 1 << 16
_CHANGES_AT_ONCE = 1 << 14  # so few that they stay in a core's cache until they are in the file


class PartWriter:
    """Writes a server's parts, one request of a kind at a time."""

    def __init__(self, server: ParameterServer, rows: str) -> None:
        """rows: their format in the files, as `_native.ServedTable` takes it."""
        self._server = server
        self._rows = rows
        self._reports: queue.SimpleQueue[ExportReport] = queue.SimpleQueue()
        self._chain: list[dict[str, PartTable]] = []  # the newest base's tables, then the versions' since
        # What the version before has: which of the tables, keys, and keys that went.
        self._taken: list[tuple[int, Array, Array]] = []
        self._last = 0  # the number of the last version in the chain
        self._lock = threading.Lock()  # of the chain, which threads change
        self._closed = threading.Event()

    def begin(self, request: ExportRequest) -> None:
        """Marks what has changed until now, for a version; the rest is done by a thread.

        The tables may go on changing at once.
        """
        if request.kind == "begin":
            self._chain, self._taken = [], []
            for _, table in self._tables():
                table.begin_changes()
            self._start(request, self._write_tables)
        elif request.kind == "version":
            self._begin_version(request)
        else:
            chain = list(self._chain)
            self._start(request, lambda file: self._write_merged(file, chain), merged=len(chain))

    def refuse(self, request: ExportRequest) -> None:
        """Reports that it is too late for a version of this step; what has changed stays for the next one."""
        if not request.again:  # else the try before was taken here and must be given back
            self._taken = []
        self._reports.put(ExportReport(request.kind, request.number, error="too late", late=True))

    def finished(self) -> list[ExportReport]:
        """Returns what has been written, or has failed, since the last call."""
        reports: list[ExportReport] = []
        while not self._reports.empty():  # asked in every pass of a server's loop
            reports.append(self._reports.get_nowait())
        return reports

    def close(self) -> None:
        """Lets threads end soon, with what they write unfinished: the process waits for them."""
        self._closed.set()

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("the run ends")

    def _tables(self) -> list[tuple[TableLayout, Table]]:
        pairs = zip(self._server.layout.tables, self._server.tables, strict=True)
        return [(layout, table) for layout, table in pairs if table is not None]

    def _begin_version(self, request: ExportRequest) -> None:
        tables = self._tables()
        if request.again:
            with self._lock:
                if self._last == request.number:  # others failed
                    self._chain.pop()
                    self._last -= 1
            for index, keys, removed in self._taken:
                tables[index][1].return_changes(keys, removed)
        for _, table in tables:
            table.mark_changes(self._rows)
        self._taken = taken = []  # what isn't taken comes with the next mark

        def write(file: PartFile) -> None:
            for index, (layout, table) in enumerate(tables):
                keys, rows, removed = table.take_changes(_CHANGES_AT_ONCE)  # all that went, and some rows
                if not len(keys) and not len(removed):
                    continue
                taken.append((index, keys, removed))
                more = _more_changes(table, index, taken)
                file.add_table(layout.name, rows.shape[1], chain([(keys, rows)], more), removed)

        self._start(request, write)

    def _write_tables(self, file: PartFile) -> None:
        for layout, table in self._tables():
            width = ServedTable(self._rows, layout.dim).row_bytes
            file.add_table(layout.name, width, self._buckets(table), index=True)

    def _buckets(self, table: Table) -> Iterator[tuple[Array, Array]]:
        for bucket in range(table.first_bucket, table.end_bucket if table.num_rows else table.first_bucket):
            self._go_on()
            rows = table.export_bucket(bucket)
            if len(rows["keys"]):
                yield rows["keys"], encode_served(rows["rows"], self._rows)

    def _write_merged(self, file: PartFile, chain: list[dict[str, PartTable]]) -> None:
        for layout, _ in self._tables():
            self._go_on()
            served = merged_table(self._rows, layout, chain)
            file.add_table(layout.name, served.row_bytes, self._pieces(served), index=True)

    def _pieces(self, served: ServedTable) -> Iterator[tuple[Array, Array]]:
        for keys in _slices(served.keys()):
            self._go_on()
            yield keys, _copied(served, keys)

    def _start(self, request: ExportRequest, write: Callable[[PartFile], None], *, merged: int = 0) -> None:
        name = f"persia-export-{request.kind}"
        # No daemon: Python ends those in the midst of native code, and with them the process, by SIGABRT.
        threading.Thread(target=self._run, args=(request, write, merged), name=name).start()

    def _run(self, request: ExportRequest, write: Callable[[PartFile], None], merged: int) -> None:
        if request.kind != "version":  # a version is little work, and somebody waits for it
            with contextlib.suppress(OSError):  # where cores are short, training goes first
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        path = Path(request.path) / part_name(self._server.server_rank)
        kind, number = request.kind, request.number
        try:
            with PartFile(path) as file:
                write(file)
                note = file.close()
            tables = map_part(path, note, check=False)  # it gets another name, and may be pruned
            with self._lock:
                self._chain = [tables, *self._chain[merged:]] if merged else [*self._chain, tables]
                self._last = self._last if merged else number
            written = ExportReport(kind, number, path.name, note["bytes"], note["crc32"], step=request.step)
            self._reports.put(written)
        except Exception as error:
            text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            failed = ExportReport(kind, number, error=" ".join(text.split()), step=request.step)
            self._reports.put(failed)


def merged_table(rows: str, layout: TableLayout, chain: list[dict[str, PartTable]]) -> ServedTable:
    """Returns a table as of the last element of a chain: a base's part and those of the versions after it."""
    served = ServedTable(rows, layout.dim)
    for number, tables in enumerate(chain):
        table = tables.get(layout.name)
        if table is None:
            continue
        if number == 0 and table.cells is not None:
            served.add_part(table.keys, table.cells, table.shift, table.rows)
        elif number:
            served.add_changes(table.keys, table.rows, table.removed)
    return served


def _more_changes(
    table: Table, index: int, taken: list[tuple[int, Array, Array]]
) -> Iterator[tuple[Array, Array]]:
    while True:
        keys, rows, removed = table.take_changes(_CHANGES_AT_ONCE)
        if not len(keys):
            return
        taken.append((index, keys, removed))
        yield keys, rows


def _slices(keys: Array) -> Iterator[Array]:
    for begin in range(0, len(keys), _ROWS_AT_ONCE):
        yield keys[begin : begin + _ROWS_AT_ONCE]


def _copied(served: ServedTable, keys: Array) -> Array:
    out = np.empty((len(keys), served.row_bytes), np.uint8)
    served.copy(keys, out)
    return out
