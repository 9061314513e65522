"""A server's threads that write versions end with the run, and never in the midst of native code."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.serving.requests import ExportRequest
from persia_hpc.serving.writer import PartWriter


class EndlessTable:
    """Has so many buckets that to write them would take days."""

    first_bucket, end_bucket, num_rows = 0, 1 << 40, 1

    def begin_changes(self) -> None:
        """Notes nothing."""

    def export_bucket(self, bucket: int) -> dict[str, Any]:
        time.sleep(0.0001)
        return {"keys": np.empty(0, np.uint64), "rows": np.empty((0, 4), np.float32)}


class ChangedTable:
    """Has one row that has changed."""

    def __init__(self) -> None:
        self.taken: weakref.ref[np.ndarray] | None = None
        self.returned: list[int] = []

    def mark_changes(self, rows: str) -> None:
        """Marks nothing."""

    def take_changes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        changed = np.zeros((1, 16), np.uint8)
        self.taken = weakref.ref(changed)
        return np.array([7], np.uint64), changed, np.empty(0, np.uint64)

    def return_changes(self, keys: np.ndarray, removed: np.ndarray) -> None:
        self.returned += keys.tolist()


def test_rows_take_no_memory_once_they_are_written(tmp_path: Path) -> None:
    layout = SimpleNamespace(tables=[SimpleNamespace(name="item", dim=4)])
    table = ChangedTable()
    server = SimpleNamespace(server_rank=0, layout=layout, tables=[table])
    writer = PartWriter(cast(ParameterServer, server), "fp32")
    for number, again in ((1, False), (2, True)):
        writer.begin(ExportRequest("version", number, 0, str(tmp_path), again=again))
        for thread in threading.enumerate():
            if thread.name == "persia-export-version":
                thread.join(30)
        (report,) = writer.finished()
        assert not report.error
        assert table.taken is not None
        assert table.taken() is None
    assert table.returned == [7]


def test_what_is_being_written_ends_with_the_run(tmp_path: Path) -> None:
    layout = SimpleNamespace(tables=[SimpleNamespace(name="item", dim=4)])
    server = SimpleNamespace(server_rank=0, layout=layout, tables=[EndlessTable()])
    writer = PartWriter(cast(ParameterServer, server), "fp32")
    writer.begin(ExportRequest("begin", 1, 0, str(tmp_path)))
    (thread,) = (each for each in threading.enumerate() if each.name == "persia-export-begin")
    assert not thread.daemon
    assert not writer.finished()
    writer.close()
    thread.join(30)
    assert not thread.is_alive()
    (report,) = writer.finished()
    assert report.error
