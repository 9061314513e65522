"""Versions of a run: what a restart leaves behind of the rows that were replaced."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from persia_hpc.config import load_config
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.serving.directory import ExportDirectory
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.trainer.exporting import Exporter
from persia_hpc.trainer.interfaces import BatchStream, NoPeers
from tests.support.tiny import tiny_config, write_tiny


class Servers:
    """Writes at once whatever it is asked for."""

    def __init__(self) -> None:
        self.asked: list[ExportRequest] = []
        self._reports: list[ExportReport] = []

    def begin_export(self, request: ExportRequest) -> None:
        self.asked.append(request)
        (Path(request.path) / "server-0000.rows").write_bytes(b"x")
        self._reports.append(ExportReport(request.kind, request.number, "server-0000.rows", 1, 0))

    def exported(self) -> list[ExportReport]:
        reports, self._reports = self._reports, []
        return reports

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        while not done():
            time.sleep(0.001)


@pytest.mark.parametrize("polls", [0, 1])
def test_after_a_restart_no_version_is_based_on_rows_that_were_replaced(tmp_path: Path, polls: int) -> None:
    """Whether the base that was under way has been reported by then, or not."""
    export = {"every_seconds": 0.001, "dir": str(tmp_path / "export"), "base_every": 1}
    config = load_config(tiny_config(write_tiny(tmp_path / "train.h5", 60), export=export))
    servers, directory = Servers(), ExportDirectory(tmp_path / "export")
    stream = cast(BatchStream, servers)
    exporter = Exporter(config, stream, NoPeers(), DatasetSchema((), ()), directory, tmp_path)
    for step in (1, 2):  # the first base, then a version, and with it the next base
        time.sleep(0.002)
        exporter.advance(step)
        exporter.wait()
    assert [request.kind for request in servers.asked] == ["begin", "version", "base"]
    for _ in range(polls):
        exporter.poll(2)
    exporter.restart()
    exporter.finish(1)

    def manifest(name: str) -> dict[str, Any]:
        return dict(json.loads((tmp_path / "export" / name / "manifest.json").read_text()))

    begun = servers.asked[3]
    assert begun.kind == "begin"
    newest = manifest("latest")
    assert (newest["step"], newest["base"]) == (1, begun.number)
    assert newest["version"] > begun.number
    assert not list((tmp_path / "export").glob("*.partial"))
