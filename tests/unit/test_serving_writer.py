"""A server's part of versions: no change is lost when tries fail or come too late, and its threads end."""

from __future__ import annotations

import random
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from persia_hpc._native import Table, mix
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.serving.parts import PartTable, map_part
from persia_hpc.serving.requests import ExportReport, ExportRequest
from persia_hpc.serving.writer import PartWriter, merged_table
from persia_hpc.table_layout import make_layout
from tests.support.fresh import SCHEMA, config_of


class EndlessTable:
    """Has so many buckets that to write them would take days."""

    first_bucket, end_bucket, num_rows = 0, 1 << 40, 1

    def begin_changes(self) -> None:
        """Notes nothing."""

    def export_bucket(self, bucket: int) -> dict[str, Any]:
        time.sleep(0.0001)
        return {"keys": np.empty(0, np.uint64), "rows": np.empty((0, 4), np.float32)}


class ChangedTable:
    """Has two rows that have changed, and gives one at a time."""

    def __init__(self) -> None:
        self.taken: list[weakref.ref[np.ndarray]] = []
        self.returned: list[int] = []
        self.left = 0

    def mark_changes(self, rows: str) -> None:
        self.left = 2

    def take_changes(self, enough: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count, self.left = min(self.left, 1), max(self.left - 1, 0)
        changed = np.zeros((count, 16), np.uint8)
        self.taken.append(weakref.ref(changed))
        return np.full(count, 7, np.uint64), changed, np.empty(0, np.uint64)

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
        assert len(table.taken) == 3 * number
        assert all(rows() is None for rows in table.taken)
    assert table.returned == [7, 7]


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


class Part:
    """A server with real tables and its writer, and what a reader has put together of its files."""

    def __init__(self, folder: Path) -> None:
        config = load_config(config_of("sync", {"optimizer": {"name": "sgd", "lr": 0.1}}))
        self.layout = make_layout(config, SCHEMA)
        self.server = ParameterServer(config, self.layout)
        self.writer = PartWriter(self.server, "fp32")
        self.folder = folder
        self.read: list[dict[str, PartTable]] = []
        self._steps = 0

    @property
    def table(self) -> Table:
        table = self.server.tables[0]
        assert table is not None
        return table

    def update(self, ids: list[int]) -> None:
        self._steps += 1
        keys = np.sort(mix(np.array(ids, np.uint64)))
        rows, slots = np.empty((len(keys), self.table.dim), np.float32), np.empty(len(keys), np.uint32)
        epoch = self.table.pull(keys, self._steps, rows, slots)
        self.table.push(keys, slots, np.ones_like(rows), self._steps, epoch)

    def request(self, kind: str, number: int, outcome: str, *, again: bool) -> ExportReport:
        """outcome: what becomes of it here: "written", "failed" or "late"."""
        path = self.folder / ("gone" if outcome == "failed" else ".")
        request = ExportRequest(kind, number, 0, str(path), again=again)
        (self.writer.refuse if outcome == "late" else self.writer.begin)(request)
        deadline = time.monotonic() + 30
        while not (reports := self.writer.finished()):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        (report,) = reports
        assert bool(report.error) == (outcome != "written")
        return report

    def take(self, report: ExportReport) -> None:
        """Lets the reader have a part that all servers have written."""
        path = self.folder / report.file
        path = path.rename(self.folder / f"{report.kind}-{report.number}")
        self.read.append(map_part(path, {"bytes": report.bytes, "crc32": report.crc32}, check=True))

    def check(self) -> None:
        """Compares what a reader has, and the next base would have, with the table."""
        trained = [self.table.export_bucket(b) for b in range(self.table.first_bucket, self.table.end_bucket)]
        keys = np.concatenate([bucket["keys"] for bucket in trained])
        values = np.concatenate([bucket["rows"] for bucket in trained])
        for chain in (self.read, self.writer._chain):
            served = merged_table("fp32", self.layout.tables[0], chain)
            assert set(served.keys().tolist()) == set(keys.tolist())
            out = np.empty((len(keys), served.row_bytes), np.uint8)
            served.copy(keys, out)
            np.testing.assert_array_equal(out.view(np.float32), values)


def play(folder: Path, outcomes: list[tuple[str, ...]], seed: int = 0) -> None:
    """Lets servers try to write versions; outcomes: what becomes of each try on each of them."""
    rng = random.Random(seed)
    servers = [Part(folder / str(rank)) for rank in range(len(outcomes[0]))]
    number, again = 1, False
    for server in servers:
        server.folder.mkdir(parents=True)
        server.take(server.request("begin", number, "written", again=False))
    number += 1
    for tried in [*outcomes, ("written",) * len(servers)]:
        for server in servers:
            server.update(rng.sample(range(60), rng.randrange(1, 10)))
        each = zip(servers, tried, strict=True)
        reports = [server.request("version", number, outcome, again=again) for server, outcome in each]
        again = set(tried) != {"written"}
        if not again:
            number += 1
            for server, report in zip(servers, reports, strict=True):
                server.take(report)
                server.check()


@pytest.mark.parametrize(
    "outcomes",
    [
        [("written", "written"), ("written", "late"), ("late", "written")],
        [("written", "late"), ("late", "written"), ("written", "late"), ("late", "written")],
        [("written", "failed"), ("late", "failed"), ("failed", "late")],
        [("written", "late"), ("failed", "written"), ("failed", "failed"), ("failed", "late")],
    ],
)
def test_no_change_is_lost_whatever_becomes_of_tries(tmp_path: Path, outcomes: list[tuple[str, ...]]) -> None:
    play(tmp_path, outcomes)


@pytest.mark.parametrize("seed", range(5))
def test_no_change_is_lost_in_any_order_of_outcomes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kinds = ["written", "written", "late", "failed"]
    play(tmp_path, [(rng.choice(kinds), rng.choice(kinds)) for _ in range(20)], seed)
