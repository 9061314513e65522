"""A run directory as a report reads it: learning rates, values, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from persia_hpc.reporting.run_record import RunRecord
from tests.support.recorded import SUMMARY, evaluate_event, some_events, write_record


def test_learning_rates_follow_schedule_and_plateau(tmp_path: Path) -> None:
    events = some_events(1000)
    events[-2:] = [evaluate_event(500, rate_factor=0.5), events[-2]]
    schedule = {"name": "step", "every": 250, "gamma": 0.1}
    run = RunRecord(write_record(tmp_path / "run", events, **{"train.schedule": schedule}))
    rates = {name: dict(points) for name, points in run.learning_rates().items()}
    assert set(rates) == {"dense network", "table default", "table item, table user"}
    dense = rates["dense network"]
    assert dense[1] == pytest.approx(0.01)
    assert dense[500] == pytest.approx(0.001)
    assert dense[501] == pytest.approx(0.01 * 0.01 * 0.5)
    assert dense[1000] == pytest.approx(0.01 * 0.001 * 0.5)
    assert rates["table item, table user"][501] == pytest.approx(0.05)


def test_problems_name_their_files(tmp_path: Path) -> None:
    run = write_record(tmp_path / "run")
    assert RunRecord(run).problems == []
    for name in ("summary.json", "failure.json", "config.toml"):
        (run / name).write_text("{")
    assert [
        name
        for name in ("summary.json", "failure.json", "config.toml")
        if name in str(RunRecord(run).problems)
    ] == [
        "summary.json",
        "failure.json",
        "config.toml",
    ]


def test_leaves_are_all_values_in_their_order(tmp_path: Path) -> None:
    leaves = dict(RunRecord(write_record(tmp_path / "run")).leaves())
    assert list(leaves)[:4] == ["schema_version", "status", "stop_reason", "mode"]
    assert leaves["phase_seconds.trainer.pool.mean"] == SUMMARY["phase_seconds"]["trainer"]["pool"]["mean"]
