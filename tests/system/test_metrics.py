"""Runs whose metrics are undefined say so, and neither stop for it nor fail; missing labels are left out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.trainer.metrics import MetricError
from tests.support import models
from tests.support.jobs import Job, user_environment
from tests.support.tiny import tiny_config, write_tiny

N = 400
RANDOM = np.random.default_rng(0)
CLICK = RANDOM.integers(0, 2, (N, 1)).astype(np.float32)
BUY = np.where(CLICK == 1, RANDOM.integers(0, 2, (N, 1)), np.nan).astype(np.float32)  # known after a click


def write(path: Path, labels: np.ndarray, weight: np.ndarray | None = None) -> str:
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        if labels.shape[1] == 2:
            file.attrs["label_names"] = ["click", "buy"]
        file["ids/user"] = np.random.default_rng(1).integers(0, 50, N).astype(np.uint64)
        file["label"] = labels.astype(np.float32)
        if weight is not None:
            file["weight"] = weight.astype(np.float32)
    return str(path)


def train(
    run_dir: Path, data: str, valid: str, tasks: dict[str, Any] | None = None, **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = {
        "mode": "sync",
        "run_dir": str(run_dir),
        "data": {"train": data, "valid": valid, "batch_size": 64},
        "tables": {"default": {"dim": 4, "capacity": "4 MiB"}},
        "model": {"class": "deepfm", "hidden": [16]},
        "tasks": tasks or {},
        "train": {"epochs": 4, "threads": 1, "early_stop": {"metric": "auc", "patience": 2}, **more},
    }
    summary = ph.train(config, quiet=True)
    assert json.loads((run_dir / "summary.json").read_text())["valid"] == summary["valid"]
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return summary, [event for event in events if event["event"] == "evaluate"]


def test_an_auc_of_one_class_stops_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "train.h5", CLICK)
    summary, evaluations = train(tmp_path / "run", data, write(tmp_path / "valid.h5", 0 * CLICK))
    assert (summary["status"], len(evaluations)) == ("completed", 4)
    assert summary["valid"]["auc"] is None
    assert summary["valid"]["undefined"] == {"auc": "all labels are 0"}
    assert math.isfinite(summary["valid"]["logloss"])
    assert all(event["uncounted"] == ["keep_best", "early_stop"] for event in evaluations)
    assert summary["best"] is None


def test_weights_that_are_all_0_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "train.h5", CLICK, np.ones(N))
    summary, _ = train(tmp_path / "run", data, write(tmp_path / "valid.h5", CLICK, np.zeros(N)))
    reasons = {"auc": "all weights are 0", "logloss": "all weights are 0"}
    assert summary["status"] == "completed"
    assert summary["valid"] == {"samples": N, "auc": None, "logloss": None, "undefined": reasons}
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--split", "valid"]) == 0
    assert json.loads(capsys.readouterr().out) == summary["valid"]


def test_the_metric_of_one_label_can_be_watched_where_another_is_undefined(tmp_path: Path) -> None:
    data = write(tmp_path / "two.h5", np.concatenate([CLICK, 0 * CLICK], 1))
    early_stop = {"metric": "auc_click", "patience": 1, "mode": "min"}  # it will rise
    summary, evaluations = train(tmp_path / "run", data, data, early_stop=early_stop)
    assert summary["stop_reason"] == "no better auc_click in 1 evaluations"
    assert summary["best"]["value"] == evaluations[0]["auc_click"] < evaluations[1]["auc_click"]
    assert summary["valid"]["undefined"] == {"auc_buy": "all labels are 0", "auc": "auc_buy is undefined"}
    assert all("uncounted" not in event for event in evaluations)


def test_another_number_for_a_missing_label_is_no_class(tmp_path: Path) -> None:
    labels = np.concatenate([CLICK, np.nan_to_num(BUY, nan=-1)], 1)
    data = write(tmp_path / "two.h5", labels)
    summary, _ = train(tmp_path / "run", data, data, loss="tests.support.models:masked")
    valid = summary["valid"]
    assert (valid["auc_buy"], valid["logloss_buy"], valid["auc"], valid["logloss"]) == (None,) * 4
    assert "neither 0 nor 1, such as -1; a missing label is NaN" in valid["undefined"]["auc_buy"]
    assert summary["status"] == "completed"


def test_metrics_are_those_of_the_samples_whose_label_is_known(tmp_path: Path) -> None:
    labels = np.concatenate([CLICK, BUY], 1)
    data, run = write(tmp_path / "two.h5", labels), tmp_path / "run"
    summary, _ = train(run, data, data, early_stop=None)
    valid = summary["valid"]
    ph.load(run).predict([data], tmp_path / "scores.h5")
    with h5py.File(tmp_path / "scores.h5") as file:
        scores = np.asarray(file["probability"])
    for i, name in enumerate(("click", "buy")):
        known = ~np.isnan(labels[:, i])
        assert valid[f"auc_{name}"] == pytest.approx(roc_auc_score(labels[known, i], scores[known, i]))
        expected = log_loss(labels[known, i], scores[known, i])
        assert valid[f"logloss_{name}"] == pytest.approx(expected, rel=1e-5)
    assert valid["missing_labels"] == {"buy": int((CLICK == 0).sum())}
    assert "undefined" not in valid


def test_a_tasks_own_metric_is_evaluated_and_watched(tmp_path: Path) -> None:
    data, run = write(tmp_path / "two.h5", np.concatenate([CLICK, BUY], 1)), tmp_path / "run"
    tasks = {"buy": {"metrics": ["ne", "pr_auc"]}, "click": {}}
    early_stop = {"metric": "ne_buy", "patience": 4}
    summary, evaluations = train(run, data, data, tasks, early_stop=early_stop, metrics=["calibration"])
    reported = {name.removesuffix("_buy") for name in summary["valid"] if name.endswith("_buy")}
    assert reported == {"auc", "logloss", "ne", "pr_auc"}
    assert {"calibration_click", "calibration"} <= summary["valid"].keys()
    assert not {"ne_click", "calibration_buy"} & summary["valid"].keys()
    assert summary["best"]["value"] == min(event["ne_buy"] for event in evaluations)
    again = {"checkpoint.resume": True, "run_dir": str(run), "tasks.buy.metrics": ["pr_auc", "ne", "mae"]}
    resumed = ph.train(ph.load(run).config, set={**again, "train.epochs": 5}, quiet=True)
    assert resumed["valid"]["mae_buy"] == resumed["valid"]["mae"]


def test_a_metric_that_fails_ends_the_run_after_a_checkpoint(tmp_path: Path) -> None:
    data = write(tmp_path / "train.h5", CLICK)
    changes = {"metrics": ["tests.support.models:scripted"], "early_stop": None}
    models.SCRIPT[:] = [0.1, ValueError("in two\nlines")]
    said = r"^train\.metrics: scripted failed on 400 samples: ValueError: in two lines \(\S*models\.py:\d+\)"
    with pytest.raises(MetricError, match=said) as caught:
        train(tmp_path / "run", data, data, **changes)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "latest").readlink().name == "step-00000014"  # of the second epoch's end
    models.SCRIPT[:] = [0.1, 0.2, 0.3, 0.4]
    whole, _ = train(tmp_path / "whole", data, data, **changes)
    models.SCRIPT[:] = [0.2, 0.3, 0.4]
    config = ph.load(tmp_path / "run").config
    again = ph.train(config, set={"checkpoint.resume": True, "run_dir": str(tmp_path / "run")}, quiet=True)
    assert (again["status"], again["valid"]) == ("completed", whole["valid"])
    models.SCRIPT[:] = [KeyError("x")]
    with pytest.raises(MetricError, match="scripted failed on 400 samples: KeyError: 'x'"):
        ph.load(tmp_path / "run").evaluate("valid")


def test_a_metric_that_fails_on_a_job_of_two_trainers(tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "train.h5", 333)
    settings = {"data.valid": [data], "train.metrics": ["tests.support.models:unfinished"]}
    job = Job(tmp_path, tiny_config(data, **{**settings, "ranks.trainers": 2}))
    code, _, err = job.end()
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("persia-hpc: error: train.metrics: unfinished failed on 333 samples: AttributeErr")
    assert err.count("unfinished failed") == 1
    assert "Traceback" not in err
    assert (job.run_dir / "latest").readlink().name == "step-00000011"
    command = [sys.executable, "-m", "persia_hpc.cli", "evaluate", str(job.run_dir), "--split", "valid"]
    done = subprocess.run(command, capture_output=True, text=True, env=user_environment(), timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == last
    mended = {**user_environment(), "MENDED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=mended, timeout=100)
    assert json.loads(done.stdout)["unfinished"] == 0.5
