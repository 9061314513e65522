"""`bench scale`'s server half: every record does its work, for one server's share of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from persia_hpc.bench import scale_server
from persia_hpc.bench.scale_server import _Server, measure_server


def test_a_servers_records_pull_and_push_its_share_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_server, "VOCABULARY", 4000)
    server, generator = _Server(3, 4, 400, workers=2), np.random.default_rng(1)
    made = sum(table.num_rows for table in server.engine.tables if table is not None)
    assert made == 3 * len(server.keys)
    assert len(server.keys) == pytest.approx(1000, rel=0.15)
    ledger = server.engine.ledger
    before, rows = ledger.pulled_rows, 0
    for _ in range(5):
        batches = [server.draw(400, generator) for _ in range(server.workers)]
        server.step(batches)
        rows += sum(len(keys) for keys, _ in batches)
    assert ledger.pulled_rows - before == rows == pytest.approx(2 * 5 * 3 * 100, rel=0.3)
    assert ledger.applied_rows == ledger.pulled_rows
    assert server.engine.clock.applied == server.number
    assert made == sum(table.num_rows for table in server.engine.tables if table is not None)


def test_a_result_tells_the_batch_from_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_server, "VOCABULARY", 2000)
    result = measure_server(tables=4, servers=2, repeats=3, ids=100, workers=3)
    assert result.notes["beyond us"] == result.ours.median - result.limits["rows and bytes"].median
    assert result.notes["rows"] == pytest.approx(4 * 50, rel=0.3)
    assert result.ours.median > 0
