"""Runs report metrics within groups, of slices and of training samples, the same in each kind of job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import persia_hpc as ph
from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.trainer.losses import load_loss
from tests.support.jobs import Job
from tests.support.tiny import REDUCER

N = 600
METRICS = ["ne", "calibration", "pr_auc", "gauc", "gauc@groups", "recall@2", "ndcg@2"]
SEEN: list[tuple[np.ndarray, np.ndarray]] = []  # what `noted` was called with


def noted(logits: Tensor, batch: Any) -> Tensor:
    SEEN.append((logits.detach().numpy().copy(), batch.labels.numpy().copy()))
    return load_loss("bce")(logits, batch)


class Tiny(torch.nn.Module):
    """A linear layer over the embeddings."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(inputs.pooled_width, 1)

    def forward(self, batch: Any) -> Tensor:
        logits: Tensor = self.layer(batch.concatenated())
        return logits


def write(path: Path, *, group: bool = True, seed: int = 0) -> str:
    """Users, of which some click more, in countries; ids beyond what an int64 holds."""
    random = np.random.default_rng(seed)
    user, dense = random.integers(0, 60, N), random.normal(size=(N, 1))
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = 1
        file["ids/user"] = user.astype(np.uint64)
        file["ids/country"] = (user % 4).astype(np.uint64) + np.uint64(2**63)
        file["ids/tags/values"] = user.astype(np.uint64)
        file["ids/tags/offsets"] = np.arange(N + 1)
        chance = 0.1 + 0.4 * (user % 2)[:, None] + 0.2 * dense
        file["dense"] = dense.astype(np.float32)
        file["label"] = (random.random((N, 1)) < chance).astype(np.float32)
        if group:
            file["group"] = user - 30
    return str(path)


def config(data: str, valid: str | None = None, **train: Any) -> dict[str, Any]:
    return {
        "mode": "sync",
        "data": {"train": data, "valid": valid or [], "batch_size": 64, "evaluate_batch_size": 128},
        "tables": {"default": {"dim": 4, "capacity": "4 MiB"}},
        "features": {"tags": {"pooling": "mean"}},
        "model": {"class": "deepfm", "hidden": [16]},
        "train": {"epochs": 2, "threads": 1, "reducer": REDUCER, **train},
    }


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [event for event in lines if event["event"] == kind]


def check_slices(valid: dict[str, Any], data: str, probability: np.ndarray) -> None:
    with h5py.File(data) as file:
        country, labels = np.asarray(file["ids/country"]), np.asarray(file["label"])
    counts = {str(i): int((country == i).sum()) for i in np.unique(country)}
    assert {i: metrics["samples"] for i, metrics in valid["slices"]["country"].items()} == counts
    for i, metrics in valid["slices"]["country"].items():
        mine = country == int(i)
        expected = roc_auc_score(labels[mine, 0], probability[mine, 0])
        assert metrics["auc"] == pytest.approx(expected, abs=1e-4)  # probabilities tie where logits don't
        assert set(METRICS) <= set(metrics)


def test_a_run_in_one_process_and_what_is_loaded_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, valid = write(tmp_path / "train.h5"), write(tmp_path / "valid.h5", seed=1)
    train = {"metrics": METRICS, "slices": ["country"], "slice_samples": 20, "progressive": 300}
    train |= {"early_stop": {"metric": "gauc", "patience": 9}, "keep_best": "ne"}
    train["loss"] = "tests.system.test_grouped_metrics:noted"
    SEEN.clear()
    run = tmp_path / "run"
    summary = ph.train(config(data, valid, **train) | {"run_dir": str(run)}, quiet=True)
    found = summary["valid"]
    assert all(np.isfinite(found[name]) for name in METRICS)
    assert found["gauc"] > 0.6
    assert summary["best"]["value"] == min(event["ne"] for event in events(run, "evaluate"))
    ph.load(run).predict([valid], tmp_path / "scores.h5")
    with h5py.File(tmp_path / "scores.h5") as file:
        check_slices(found, valid, np.asarray(file["probability"]))
    assert main(["evaluate", str(run / "latest"), "--split", "valid"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    # The window: the last 5 of 10 steps of an epoch hold 600 - 5 * 64 = 280 samples, so it is the last 6.
    progressive = events(run, "progressive")
    assert [event["step"] for event in progressive] == [10, 20]
    for event, last in zip(progressive, (10, 20), strict=True):
        scores, labels = (np.concatenate(column) for column in zip(*SEEN[last - 6 : last], strict=True))
        assert event["samples"] == len(labels) == 344
        assert event["auc"] == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]), rel=1e-12)
        assert set(METRICS) <= set(event)
        assert "slices" not in event
    assert summary["progressive"] == {k: v for k, v in progressive[1].items() if k not in ("event", "step")}


def test_two_trainers_report_what_one_process_does(tmp_path: Path) -> None:
    data, valid = write(tmp_path / "train.h5"), write(tmp_path / "valid.h5", seed=1)
    settings = config(data, valid, metrics=METRICS, slices=["country"], slice_samples=20, progressive=300)
    alone = ph.train(settings | {"run_dir": str(tmp_path / "alone")}, quiet=True)
    ranks = {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2}
    job = Job(tmp_path, settings | {"ranks": ranks})
    code, _, err = job.end()
    assert code == 0, err
    summary = json.loads((job.run_dir / "summary.json").read_text())

    def compare(one: Any, other: Any) -> None:
        if isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                compare(one[key], other[key])
        else:
            assert one == pytest.approx(other, abs=0.02)  # sums of another order, from training on

    for name in ("valid", "progressive"):
        assert summary[name]["samples"] == alone[name]["samples"]
        compare(summary[name], alone[name])
    compare(ph.load(job.run_dir).evaluate("valid"), summary["valid"])


def test_without_a_valid_split_and_after_a_resume_the_window_begins_anew(tmp_path: Path) -> None:
    data, run = write(tmp_path / "train.h5"), tmp_path / "run"
    settings = config(data, progressive=10_000, evaluate_every=4) | {"run_dir": str(run)}
    ph.train(settings, set={"train.max_steps": 6}, quiet=True)
    ph.train(settings, set={"train.max_steps": 9, "checkpoint.resume": True}, quiet=True)
    found = [(event["step"], event["samples"]) for event in events(run, "progressive")]
    assert found == [(4, 4 * 64), (6, 6 * 64), (8, 2 * 64), (9, 3 * 64)]


def test_a_loop_of_the_users_own_gets_them_too(tmp_path: Path) -> None:
    data = write(tmp_path / "train.h5")
    found = []

    def loop(session: Any) -> None:
        model = session.prepare(Tiny(session.inputs))
        for batch in session.batches(steps=3):
            logits = session.forward(batch)
            session.step(load_loss("bce")(logits, batch))
        found.append(session.progressive.metrics())
        found.append(session.evaluate(model, "valid"))

    settings = config(data, data, metrics=["gauc"], progressive=100) | {"run_dir": str(tmp_path / "run")}
    summary = ph.run(settings, loop, quiet=True)
    assert found[0]["samples"] == 128
    assert found[0] == summary["progressive"]
    assert np.isfinite(found[1]["gauc"])


@pytest.mark.parametrize(
    ("group", "train", "parts"),
    [
        (False, {"metrics": ["gauc", "ndcg@5"]}, ["gauc, ndcg@5 are means over groups", "no dataset /group"]),
        (False, {"metrics": ["recall@5"]}, ["recall@5 is a mean over groups"]),
        (True, {"slices": ["contry"]}, ["no id feature 'contry'", "did you mean 'country'"]),
        (True, {"slices": ["tags"]}, ["'tags' has several ids a sample", "expected a feature with one"]),
    ],
)
def test_data_without_what_metrics_need_are_refused_in_one_line(
    tmp_path: Path, group: bool, train: dict[str, Any], parts: Sequence[str]
) -> None:
    data = write(tmp_path / "train.h5", group=group)
    with pytest.raises(UserError) as caught:
        ph.train(config(data, data, **train) | {"run_dir": str(tmp_path / "run")}, quiet=True)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_data_to_evaluate_in_training_need_groups_too(tmp_path: Path) -> None:
    data, other = write(tmp_path / "train.h5"), write(tmp_path / "other.h5", group=False)
    with pytest.raises(UserError, match=r"gauc is a mean over groups, but data\.valid has no dataset /group"):
        ph.train(config(data, other, metrics=["gauc"]) | {"run_dir": str(tmp_path / "run")}, quiet=True)


def test_other_files_to_evaluate_need_groups_and_files_to_score_none(tmp_path: Path) -> None:
    data, other = write(tmp_path / "train.h5"), write(tmp_path / "other.h5", group=False)
    run = tmp_path / "run"
    ph.train(config(data, metrics=["gauc"], epochs=1) | {"run_dir": str(run)}, quiet=True)
    assert ph.load(run).predict([other], tmp_path / "scores.csv") == N
    with pytest.raises(UserError, match=r"gauc is a mean over groups, but \S*other.h5 has no dataset /group"):
        ph.api.evaluate(str(run), "test", {"data.test": other})
    found = ph.api.evaluate(str(run), "test", {"data.test": other, "train.metrics": ["ne"]})
    assert "ne" in found
    assert "gauc" not in found
