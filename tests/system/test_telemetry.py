"""What ranks write down while they train agrees with the summary, and reaches TensorBoard and loggers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import persia_hpc as ph
from tests.support.cases import run_cases, settings, summary
from tests.support.tiny import write_tiny

OFTEN = {"metrics.every_seconds": 1e-4, "metrics.tensorboard": True, "metrics.prometheus": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_tiny(folder / "train.h5", 333), write_tiny(folder / "valid.h5", 150, seed=1)


def lines(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    files = (run_dir / "telemetry").glob("*.jsonl")
    return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def check(run_dir: Path, roles: set[str]) -> None:
    found, end = lines(run_dir), summary(run_dir)
    assert set(found) == roles
    for events in found.values():
        for name in (name.removesuffix("_per_second") for name in events[0] if name.endswith("_per_second")):
            values = [event[name] for event in events]
            assert values == sorted(values), name
    servers = [events[-1] for events in found.values() if "pulled_rows" in events[-1]]
    for name in ("pulled_rows", "applied_rows", "evicted_rows"):
        assert 0 <= sum(server[name] for server in servers) <= end["embedding"][name]
    assert sum(server["pulled_rows"] for server in servers) > 0
    assert max(server["max_staleness"] for server in servers) <= end["staleness"]["max"]
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags = {tag.rpartition("/")[0] for tag in board.Tags()["scalars"]}
    assert {role.replace("-", "/") for role in roles} | {"train", "valid"} <= tags
    assert board.Scalars("valid/auc")[-1].value == pytest.approx(end["valid"]["auc"], abs=1e-6)
    assert 'persia_hpc_auc{run="' in (run_dir / "metrics.prom").read_text()


class Kept:
    """Keeps the names of the events' numbers."""

    def __init__(self) -> None:
        self.groups: set[str] = set()

    def log(self, event: dict[str, Any]) -> None:
        self.groups |= {each.group for each in ph.scalars(event)}


def test_one_process_writes_down_what_it_counts(tmp_path, data):
    kept = Kept()
    ph.train(settings(data, tmp_path / "run", 1, 1, 1, **OFTEN), quiet=True, loggers=[kept])
    check(tmp_path / "run", {"one_process-0"})
    assert {"one_process/0", "train", "valid"} <= kept.groups


def test_all_ranks_write_down_what_they_count(tmp_path, data):
    run_cases(settings(data, tmp_path / "run", 2, 1, 2, **OFTEN))
    ranks = ("parameter_server-0", "parameter_server-1", "embedding_worker-0", "trainer-0", "trainer-1")
    check(tmp_path / "run", set(ranks))
