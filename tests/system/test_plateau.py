"""Rates fall where evaluations stop getting better: for rows and the dense network, on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import persia_hpc as ph
from tests.support import models
from tests.support.mpi import run_mpi
from tests.support.tiny import run_digest, tiny_config, write_tiny

PROGRAMS = Path(__file__).with_name("programs")
PLATEAU = {"metric": "scripted", "patience": 1, "min_delta": 0.05, "factor": 0.5}
# After 10, 20, 30, 40 steps: the second isn't better by more than min_delta, the third is, the last isn't.
VALUES = [0.5, 0.54, 0.7, 0.6]
CHANGES = {"train.evaluate_every": 10, "train.metrics": ["tests.support.models:scripted"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [write_tiny(folder / "train.h5", 320), write_tiny(folder / "valid.h5", 64, seed=1)]


def settings(data: list[str], run_dir: Path, /, **changes: Any) -> dict[str, Any]:
    more = {"run_dir": str(run_dir), "data.valid": [data[1]], "train.epochs": 6, "train.max_steps": 50}
    return tiny_config(data[0], mode="sync", **{**more, **CHANGES, **changes})


def train(config: dict[str, Any], values: list[float] = VALUES) -> str:
    models.SCRIPT[:] = values
    ph.train(config, quiet=True)
    return run_digest(Path(config["run_dir"]))


def rates(run_dir: Path) -> list[tuple[int, float]]:
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(event["step"], event["rate_factor"]) for event in events if event["event"] == "evaluate"]


def test_rates_of_rows_and_the_dense_network_fall_by_the_factor(data: list[str], tmp_path: Path) -> None:
    plain = train(settings(data, tmp_path / "plain"))
    run = tmp_path / "run"
    got = train(settings(data, run, **{"train.plateau": PLATEAU}))
    assert rates(run) == [(10, 1.0), (20, 0.5), (30, 0.5), (40, 0.25), (50, 0.25)]
    assert got != plain
    # The same by torch's rules: a warm-up of 20 steps at the full rate, then half of it every 20 steps.
    schedule = {"name": "step", "every": 20, "gamma": 0.5, "warmup_steps": 0}
    again = settings(data, tmp_path / "steps", **{"train.schedule": schedule})
    again["tables"]["default"]["schedule"] = schedule
    again["tables"]["item"]["schedule"] = again["tables"]["user"]["schedule"] = schedule
    assert got == train(again)


def test_a_resumed_run_goes_on_with_the_rate_that_it_had(data: list[str], tmp_path: Path) -> None:
    whole = train(settings(data, tmp_path / "whole", **{"train.plateau": PLATEAU}))
    parts = {"train.plateau": PLATEAU, "checkpoint.resume": True}
    train(settings(data, tmp_path / "parts", **parts, **{"train.max_steps": 25}), VALUES[:2])
    got = train(settings(data, tmp_path / "parts", **parts), VALUES[2:])
    assert got == whole


def test_a_run_resumed_without_it_has_full_rates_again(data: list[str], tmp_path: Path) -> None:
    parts = {"train.plateau": PLATEAU, "checkpoint.resume": True}
    run = tmp_path / "run"
    train(settings(data, run, **parts, **{"train.max_steps": 25}), VALUES[:2])
    train(settings(data, run, **{"checkpoint.resume": True}), VALUES[2:])
    state = torch.load(run / "latest" / "dense.pt", weights_only=True)
    assert [group["lr"] for group in state["optimizer"]["param_groups"]] == [0.01]


def test_servers_of_a_job_learn_the_rates(data: list[str], tmp_path: Path) -> None:
    """With a metric that never gets better, since scripts are of one process: AUC by a huge min_delta."""
    plateau = {**PLATEAU, "metric": "auc", "min_delta": 2.0}
    changes = {"train.plateau": plateau, "train.metrics": []}
    one = settings(data, tmp_path / "one", **changes)
    ranks = {"parameter_servers": 2, "embedding_workers": 2, "trainers": 1}
    many = settings(data, tmp_path / "many", **changes, ranks=ranks)
    run_mpi(5, PROGRAMS / "train_cases.py", json.dumps([many]))
    assert train(one) == run_digest(tmp_path / "many")
    assert rates(tmp_path / "many") == [(10, 1.0), (20, 0.5), (30, 0.25), (40, 0.125), (50, 0.0625)]
