"""What is said when a resumed run's learning rates change with its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import persia_hpc as ph
from tests.support.models import Small
from tests.support.tiny import tiny_config, write_tiny

COSINE = {"train.schedule": {"name": "cosine"}, "tables.item.schedule": {"name": "cosine", "final": 0.5}}


class Rates(ph.Callback):
    """Notes the dense learning rate of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_step(self, run: Any) -> None:
        self.seen[run.step] = run.session.optimizer.param_groups[0]["lr"]


class OfTask(Small):
    """Has a layer that is its task's alone."""

    def of_task(self, number: int) -> list[str]:
        return ["head.*"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", 320)  # 10 steps an epoch


def train(data: str, run_dir: Path, **changes: Any) -> dict[int, float]:
    rates = Rates()
    ph.train(tiny_config(data, run_dir=str(run_dir), **changes), callbacks=[rates], quiet=True)
    return rates.seen


def warnings(run_dir: Path) -> list[str]:
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "warning"]


def test_a_cosine_that_is_extended_is_said_with_both_rates(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(data, tmp_path / "run", **COSINE)
    assert warnings(tmp_path / "run") == []
    capsys.readouterr()
    second = train(data, tmp_path / "run", **COSINE, **{"train.epochs": 2, "checkpoint.resume": True})
    assert second[11] > first[10]  # it rises again
    dense, rows = warnings(tmp_path / "run")
    assert f"of the dense network is {second[11]:.6g} in step 11, and would have been 0: " in dense
    assert "ended at step 10 and now ends at step 20" in dense
    assert "train.schedule.steps = 10" in dense
    assert "of table item is 0.075 in step 11, and would have been 0.05" in rows
    err = capsys.readouterr().err
    assert dense in err
    assert rows in err


@pytest.mark.parametrize(
    "changes",
    [
        {**COSINE, "checkpoint.every": 5},  # of the same length
        {"train.schedule": {"name": "step", "every": 3}, "train.epochs": 2},
        {"train.schedule": {"name": "cosine", "steps": 10}, "train.epochs": 2},
        {"train.epochs": 2},
    ],
)
def test_nothing_is_said_where_rates_stay_what_they_were(
    changes: dict[str, Any], data: str, tmp_path: Path
) -> None:
    once = {k: v for k, v in changes.items() if k != "train.epochs"}
    train(data, tmp_path / "run", **once)
    train(data, tmp_path / "run", **changes, **{"checkpoint.resume": True})
    assert warnings(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("groups", "tasks", "whose", "lr"),
    [
        ([{"match": "*.bias", "lr": 0.5}], {"label": {"lr": 0.25}}, "the dense network", 0.01),
        ([], {"label": {"lr": 0.25}}, "the dense network", 0.01),
        ([{"match": "*.bias", "lr": 0.5}], {}, "the dense network", 0.01),
        ([{"match": "*", "lr": 0.5}], {}, "the parameters '*'", 0.5),
        ([{"match": "body.*", "lr": 0.5}], {"label": {"lr": 0.25}}, "task label", 0.25),
    ],
)
def test_the_rate_that_is_said_is_that_of_parameters_without_a_rate_of_their_own(
    groups: list[dict[str, Any]], tasks: dict[str, Any], whose: str, lr: float, data: str, tmp_path: Path
) -> None:
    changes = {
        "train.schedule": {"name": "cosine"},
        "train.optimizer": {"name": "Adam", "lr": 0.01, "groups": groups},
        "tasks": tasks,
        "model": {"class": f"{__name__}:OfTask"},
    }
    train(data, tmp_path / "run", **changes)
    train(data, tmp_path / "run", **changes, **{"train.epochs": 2, "checkpoint.resume": True})
    (said,) = warnings(tmp_path / "run")
    assert said.startswith(f"the learning rate of {whose} is {lr / 2:.6g} in step 11, ")  # half a cosine


def test_following_the_advice_keeps_the_rate(data: str, tmp_path: Path) -> None:
    changes = {"train.schedule": {"name": "cosine", "warmup_steps": 4, "final": 0.25}}
    first = train(data, tmp_path / "run", **changes)
    changes["train.schedule"]["steps"] = 6
    changes |= {"train.epochs": 2, "checkpoint.resume": True}
    second = train(data, tmp_path / "run", **changes)
    alone = train(data, tmp_path / "alone", **{**changes, "checkpoint.resume": False})
    assert {**first, **second} == pytest.approx(alone)
    assert list(second.values()) == pytest.approx([0.25 * 0.01] * 10)
