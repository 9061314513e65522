"""A server's threads that write versions end with the run, and never in the midst of native code."""

from __future__ import annotations

import threading
import time
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
