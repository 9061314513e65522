"""Versions of a run: what a restart leaves behind of the rows that were replaced."""

from __future__ import annotations

import errno
import json
import os
import threading
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
        self.late: list[bool] = []  # of the versions that follow, whether it is too late for them
        self.step = 1000  # that they have applied
        self.problem = ""  # why nothing can be written
        self._reports: list[ExportReport] = []

    def begin_export(self, request: ExportRequest) -> None:
        self.asked.append(request)
        kind, number = request.kind, request.number
        if kind == "version" and self.late and self.late.pop(0):
            self._reports.append(ExportReport(kind, number, error="too late", late=True))
            return
        if self.problem:
            self._reports.append(ExportReport(kind, number, error=self.problem, step=request.step))
            return
        (Path(request.path) / "server-0000.rows").write_bytes(b"x")
        self._reports.append(ExportReport(kind, number, "server-0000.rows", 1, 0, step=request.step))

    def exported(self) -> list[ExportReport]:
        told = [report for report in self._reports if report.step <= self.step]
        self._reports = [report for report in self._reports if report.step > self.step]
        return told

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        while not done():
            time.sleep(0.001)


def exporter_of(
    folder: Path, every_seconds: float = 1000.0, base_every: int = 60, **settings: Any
) -> tuple[Exporter, Servers]:
    """An exporter that writes into `folder`/export, and the servers that it asks."""
    export = {"every_seconds": every_seconds, "base_every": base_every, "dir": str(folder / "export")}
    config = load_config(tiny_config(write_tiny(folder / "train.h5", 60), export=export, **settings))
    servers = Servers()
    stream, directory = cast(BatchStream, servers), ExportDirectory(folder / "export")
    return Exporter(config, stream, NoPeers(), DatasetSchema((), ()), directory, folder), servers


@pytest.mark.parametrize("polls", [0, 1])
def test_after_a_restart_no_version_is_based_on_rows_that_were_replaced(tmp_path: Path, polls: int) -> None:
    """Whether the base that was under way has been reported by then, or not."""
    exporter, servers = exporter_of(tmp_path, every_seconds=0.001, base_every=1)
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


def test_a_version_that_came_too_late_is_tried_again_further_ahead(tmp_path: Path) -> None:
    exporter, servers = exporter_of(tmp_path, staleness_bound=0)
    servers.late = [True, True, False]
    done: list[int] = []
    for step in range(1, 100):
        servers.step = step
        exporter.reach(step)
        deadline = time.monotonic() + 0.02
        while time.monotonic() < deadline:
            exporter.poll(step)
        if exporter.overdue():
            assert exporter.announce(step)
            done.append(step)
        if exporter.versions:
            break
    begin, *versions = servers.asked
    assert begin.kind == "begin"
    assert [request.step - step for request, step in zip(versions, done[1:], strict=True)] == [2, 4, 8]
    assert [request.again for request in versions] == [False, True, True]
    assert len({request.attempt for request in versions}) == 3
    assert {request.number for request in versions} == {2}
    assert (exporter.versions, exporter.failed, exporter.last_step) == (1, 0, versions[-1].step)
    assert not list((tmp_path / "export").glob("*.partial"))
    exporter.close()


def test_a_version_of_a_step_that_is_not_reached_is_of_the_last_one(tmp_path: Path) -> None:
    exporter, servers = exporter_of(tmp_path)
    exporter.advance(1)
    exporter.wait()
    exporter.announce(1)
    assert exporter.waits
    servers._reports.clear()  # they wait for the step
    exporter.advance(2)  # where all have stopped
    exporter.wait()
    assert [request.step for request in servers.asked[1:]] == [3, 2]
    assert len({request.attempt for request in servers.asked[1:]}) == 1
    assert exporter.last_step == 2
    exporter.close()


def test_a_run_that_ends_without_a_version_of_its_end_says_so_once(tmp_path: Path) -> None:
    exporter, servers = exporter_of(tmp_path)
    said: list[tuple[int, str]] = []
    exporter._warn = lambda step, text: said.append((step, text))
    for step in (1, 2):
        exporter.advance(step)
        exporter.wait()
    assert exporter.last_step == 2
    servers.late = [True] * 10
    exporter.finish(5)
    ((step, text),) = said
    assert step == 5
    assert "no version of the run's end, of step 5: the newest that was written is of step" in text


def test_what_fails_at_the_end_is_not_tried_again(tmp_path: Path) -> None:
    exporter, servers = exporter_of(tmp_path)
    said: list[str] = []
    exporter._warn = lambda step, text: said.append(text)
    exporter.advance(1)
    exporter.wait()
    servers.problem = os.strerror(errno.ENOSPC)
    exporter.finish(5)
    assert [request.kind for request in servers.asked] == ["begin", "version"]
    assert exporter.failed == 1
    assert ["No space left on device" in text for text in said] == [True, False]
    assert "the newest that was written is none" in said[1]


def test_a_segment_that_ends_when_all_were_late_begins_nothing_of_that_try(tmp_path: Path) -> None:
    """Its directory is about to go: no thread may write there."""
    exporter, servers = exporter_of(tmp_path)
    exporter.advance(1)
    exporter.wait()
    servers.late = [True]
    exporter.announce(1)
    busy = threading.Event()
    exporter._pool.submit(busy.wait)  # so that it isn't settled at once
    exporter.poll(2)
    asked, waits = len(servers.asked), exporter.waits
    exporter.reach(servers.asked[-1].step)
    exporter.advance(2)
    begun = (len(servers.asked) - asked, exporter._dense)
    busy.set()  # also where what follows fails: the thread is waited for
    assert (waits, begun) == (False, (0, None))
    exporter.wait()
    assert not list((tmp_path / "export").glob("*.partial"))
    exporter.finish(3)
    assert (exporter.versions, exporter.last_step) == (1, 3)
    first, second = servers.asked[1:]
    assert (second.again, second.attempt) == (True, first.attempt + 1)


def test_only_the_version_after_a_first_base_is_announced_further_ahead(tmp_path: Path) -> None:
    """Whatever later bases there are."""
    exporter, servers = exporter_of(tmp_path, 0.001, base_every=1, mode="hybrid", staleness_bound=3)
    exporter.advance(1)
    exporter.wait()
    for step in (10, 20, 30):
        time.sleep(0.002)
        assert exporter.announce(step)
        exporter.reach(servers.asked[-1].step)
        exporter.wait()
        deadline = time.monotonic() + 30
        while exporter._making is not None and time.monotonic() < deadline:
            exporter.poll(step)
    versions = [request for request in servers.asked if request.kind == "version"]
    assert exporter.bases == 4
    assert [request.step for request in versions] == [15, 22, 32]
    exporter.close()
