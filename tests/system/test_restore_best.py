"""`train.restore_best`: the evaluations at the end are of the best step, bit for bit, on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.job.trial import Trial
from tests.support import models
from tests.support.mpi import run_mpi
from tests.support.serving_chaos import IDS
from tests.support.tiny import run_digest, tiny_config, write_tiny

PROGRAMS = Path(__file__).with_name("programs")
SCRIPTED = {"train.metrics": ["tests.support.models:scripted"], "train.evaluate_every": 10}
BEST = {"train.restore_best": True, "train.keep_best": "scripted"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [
        write_tiny(folder / "train.h5", 333),
        write_tiny(folder / "valid.h5", 150, seed=1),
        write_tiny(folder / "test.h5", 140, seed=2),
    ]


def settings(data: list[str], run_dir: Path, /, **changes: Any) -> dict[str, Any]:
    splits = {"data.valid": [data[1]], "data.test": [data[2]]}
    more = {"run_dir": str(run_dir), "mode": "sync", "train.epochs": 9, "checkpoint.keep": 1, **splits}
    return tiny_config(data[0], **{**more, **changes})


def train(data: list[str], run_dir: Path, values: list[float], /, **changes: Any) -> dict[str, Any]:
    models.SCRIPT[:] = values
    return ph.train(settings(data, run_dir, **{**SCRIPTED, **changes}), quiet=True)


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in ("auc", "logloss", "samples")}


@pytest.mark.parametrize(
    "changes",
    [
        {"train.early_stop": {"metric": "scripted", "patience": 2}},
        {"train.max_steps": 40, "train.average": 0.9, "model.class": "tests.support.models:Normed"},
        {"train.max_steps": 40, "checkpoint.every": 5, "checkpoint.full_every": 7},
        {"train.max_steps": 40, "train.save": False},
    ],
)
def test_final_metrics_are_those_of_the_best_step(
    data: list[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    run, reference = tmp_path / "run", tmp_path / "reference"
    summary = train(data, run, [0.1, 0.5, 0.3, 0.4], **BEST, **changes)
    assert (summary["steps"], summary["best"]["step"], summary["restored_step"]) == (40, 20, 20)
    same = {key: value for key, value in changes.items() if key in ("train.average", "model.class")}
    until = train(data, reference, [], **same, **{"train.max_steps": 20})
    assert until["restored_step"] is None
    for split in ("valid", "test"):
        assert plain(summary[split]) == plain(until[split])
        found = [e for e in events(run) if e["event"] == "evaluate" and e["split"] == split]
        assert (found[-1]["step"], plain(found[-1])) == (20, plain(until[split]))
        assert plain(ph.load(run).evaluate(split)) == plain(summary[split])
    assert summary["embedding"]["rows"] == until["embedding"]["rows"]
    # The latest checkpoint is still that of the last step, with which the run can be continued.
    if summary["checkpoints"]["written"] and changes.get("train.save", True):
        assert ph.load(run / "latest").step == 40
        whole = train(data, tmp_path / "whole", [0.1, 0.5, 0.3, 0.4], **{**same, "train.max_steps": 40})
        assert whole["test"] != summary["test"]
        assert run_digest(run) == run_digest(tmp_path / "whole")


def test_nothing_is_restored_where_the_last_step_is_the_best(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train(data, run, [0.1, 0.5, 0.6], **BEST, **{"train.max_steps": 30})
    assert (summary["best"]["step"], summary["restored_step"]) == (30, None)
    assert not any(event["event"] == "restore" for event in events(run))


def test_a_run_killed_at_its_end_ends_the_same_when_it_is_resumed(data: list[str], tmp_path: Path) -> None:
    class Crash(ph.Callback):
        def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
            if metrics["split"] == "test":
                raise RuntimeError("here it crashes")

    whole = train(data, tmp_path / "whole", [0.1, 0.5, 0.3], **BEST, **{"train.max_steps": 30})
    run, resume = tmp_path / "run", {"checkpoint.resume": True, "train.max_steps": 30}
    models.SCRIPT[:] = [0.1, 0.5, 0.3]
    with pytest.raises(RuntimeError, match="here it crashes"):
        ph.train(settings(data, run, **SCRIPTED, **BEST, **resume), callbacks=[Crash()], quiet=True)
    summary = train(data, run, [], **BEST, **resume)
    assert (summary["this_run"]["steps"], summary["restored_step"]) == (0, 20)
    for split in ("valid", "test"):
        assert plain(summary[split]) == plain(whole[split])
    # And it can go on from its last step, as if it had never gone back.
    more = train(data, run, [0.2], **BEST, **{**resume, "train.max_steps": 40})
    assert (more["steps"], more["restored_step"]) == (40, 20)
    train(data, tmp_path / "other", [0.1, 0.5, 0.3, 0.2], **{"train.max_steps": 40})
    assert run_digest(run) == run_digest(tmp_path / "other")


def test_servers_and_trainers_of_a_job_go_back_in_every_mode(data: list[str], tmp_path: Path) -> None:
    modes: dict[str, dict[str, Any]] = {
        "hybrid": {"mode": "hybrid"},
        "sync": {"mode": "sync"},
        "async": {"mode": "async"},
        "fresh": {"mode": "fresh"},
    }
    same = {
        "ranks": {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2},
        "train.metrics": ["tests.support.models:falling"],
        "train.evaluate_every": 10,
        "train.keep_best": "falling",
        "train.restore_best": True,
        "train.max_steps": 30,
    }
    exports = {name: {"every_seconds": 0.02, "dir": str(tmp_path / f"{name}-export")} for name in modes}
    cases = [
        settings(data, tmp_path / name, **{**same, **mode, "export": exports[name]})
        for name, mode in modes.items()
    ]
    run_mpi(6, PROGRAMS / "train_cases.py", json.dumps(cases), timeout=240)
    for run in (tmp_path / name for name in modes):
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["steps"], summary["best"]["step"], summary["restored_step"]) == (30, 10, 10)
        valid = [e for e in events(run) if e["event"] == "evaluate" and e["split"] == "valid"]
        assert [event["step"] for event in valid] == [10, 20, 30, 10]
        assert plain(valid[-1]) == plain(valid[0]) == plain(summary["valid"])
        assert plain(valid[-1]) != plain(valid[-2])
        loaded = ph.load(run).evaluate("test")
        assert loaded["auc"] == pytest.approx(summary["test"]["auc"], rel=1e-9)
        assert loaded["logloss"] == pytest.approx(summary["test"]["logloss"], rel=1e-5)
        reader, best = ph.Reader(tmp_path / f"{run.name}-export", follow=False), ph.load(run)
        assert summary["export"]["last_step"] == reader.version.step == best.step == 10
        for table in best.tables:
            np.testing.assert_array_equal(reader.rows(table, IDS).values, best.rows(table, IDS))
        assert not any("export.dir" in str(event) for event in events(run))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.keep_best": False}, "keep_best is false"),
        ({"train.evaluate_at_end": False}, "evaluate_at_end is false"),
        ({"data.valid": []}, "looks at data.valid"),
    ],
)
def test_what_leaves_nothing_to_go_back_to_is_refused(
    data: list[str], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=f"train.restore_best.*{said}"):
        load_config(settings(data, tmp_path, **{"train.restore_best": True, **changes}))


def test_a_dry_run_takes_it(data: list[str], tmp_path: Path) -> None:
    config = settings(data, tmp_path / "run", **{"train.restore_best": True, "train.accumulate": 4})
    assert len(Trial(load_config(config)).steps(3)) == 3
