"""benchmarks/scaling.py measures what it says, in small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cases_and_figures(scaling, tmp_path, capsys):
    out = tmp_path / "out.json"
    small = ["--rows", "2000", "10000", "--resident", "8000", "--ids", "4000", "--repeats", "2"]
    scaling.main(
        ["rows", "features", "multihot", "vocabulary", *small, "--memory", "600 KiB", "--json", str(out)]
    )
    printed = capsys.readouterr()
    assert "rows=1e+04 left out" in printed.err
    results = json.loads(out.read_text())["results"]
    assert len(printed.out.splitlines()) == len(results) == 1 + 4 + 4 + 7
    for result in results:
        assert result["ours"]["median"] > 0
        assert 7900 <= result["case"]["resident"] <= 8000 or result["case"]["part"] == "rows"
        assert set(result["notes"]) == {"x", "dedup", "pull", "pool", "push"}


def test_only_the_resident_rows_exist_and_ids_span_the_vocabulary(scaling):
    engines = scaling.Engines(rows=5000, vocabulary=10**13, features=2, length=3, ids=3000)
    for _ in range(3):
        engines.measure()
    tables = engines.server.tables
    assert [t.num_rows for t in tables] == [2500, 2500]
    ids = engines.batches[0][0]
    assert len(ids) == 1500
    assert 0.9e13 / 2 < ids.max() < 1e13 / 2
    assert engines.server.ledger.evicted_in_flight_rows == engines.server.ledger.evicted_rows == 0
