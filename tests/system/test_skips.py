"""Steps that aren't finite, in real jobs and on the bundled data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import persia_hpc as ph
from persia_hpc.preprocess import adult
from persia_hpc.trainer.losses import load_loss
from tests.support.cases import run_cases, settings, summary
from tests.support.jobs import Job
from tests.support.tiny import trained_rows, write_tiny

BUNDLED = Path(__file__).parents[2] / "datasets" / "adult"
BAD = 50  # of 115 steps


def nan_once(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return load_loss("bce")(logits, batch) * (torch.nan if batch.step == BAD else 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("adult")
    adult.prepare(adult.AdultOptions(path, input=BUNDLED))
    return path


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_one_nan_costs_one_step(amp: str, folder: Path, tmp_path: Path) -> None:
    config = {
        "mode": "sync",
        "run_dir": str(tmp_path / "run"),
        "data": {"train": str(folder / "train.h5"), "test": str(folder / "test.h5"), "batch_size": 256},
        "tables": {"default": {"dim": 8, "optimizer": {"name": "adagrad", "lr": 0.05}, "buckets": 16}},
        "model": {"class": "deepfm"},
        "train": {"loss": f"{__name__}:nan_once", "amp": amp, "threads": 1},
    }
    end = ph.train(config, quiet=True)
    assert (end["status"], end["steps"], end["skipped_steps"]) == ("completed", 115, 1)
    assert end["test"]["auc"] >= 0.9045


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_tiny(folder / "train.h5", 333), write_tiny(folder / "valid.h5", 150, seed=1)


MODES = {
    "sync": {},
    "exact": {"mode": "hybrid", "exact": True},
    "bf16": {"train.amp": "bf16"},
    "fp16": {"train.amp": "fp16"},
    "bare": {"model": {"class": "tests.support.models:Bare"}},
}


def test_a_step_that_is_bad_on_one_trainer_is_skipped_on_all(tmp_path, data):
    """Bit for bit as if it were bad on all; by its loss alone, or by its row gradients alone."""
    kinds = {"all": "nan_at_5", "one": "nan_at_5_of_one", "rows": "steep_at_5"}
    cases = [
        (mode, kind, {**changes, "train.loss": f"tests.support.models:{loss}"})
        for mode, changes in MODES.items()
        for kind, loss in kinds.items()
        if (mode, kind) not in (("fp16", "rows"), ("bare", "rows"))  # another scale; another feature
    ]
    steps = {"train.max_steps": 7, "train.evaluate_at_end": False}
    digests = run_cases(
        *(settings(data, tmp_path / f"{mode}-{kind}", 2, 1, 2, **steps, **c) for mode, kind, c in cases)
    )
    found: dict[str, set[str]] = {}
    for (mode, kind, _), digest in zip(cases, digests, strict=True):
        found.setdefault(mode, set()).add(digest)
        assert summary(tmp_path / f"{mode}-{kind}")["skipped_steps"] == 1, (mode, kind)
    assert {mode: len(each) for mode, each in found.items()} == dict.fromkeys(MODES, 1)


def test_every_row_of_a_skipped_step_is_left_alone_in_hybrid_too(tmp_path, data):
    changes = {"mode": "hybrid", "train.loss": "tests.support.models:nan_at_5_of_one"}
    changes |= {"train.evaluate_at_end": False}
    runs = {most: {**changes, "train.max_steps": most} for most in (4, 5)}
    runs["async"] = {**changes, "mode": "async", "train.max_steps": 8}
    run_cases(*(settings(data, tmp_path / str(name), 1, 1, 2, **c) for name, c in runs.items()))
    four, five, alone = (summary(tmp_path / str(name)) for name in runs)
    assert (four["skipped_steps"], five["skipped_steps"], alone["skipped_steps"]) == (0, 1, 1)
    four, five, alone = (s["embedding"] for s in (four, five, alone))
    assert five["applied_rows"] == four["applied_rows"]
    assert five["nonfinite_rows"] == five["pulled_rows"] - four["pulled_rows"] > 0
    # In async the other trainer's rows of that step are trained.
    assert 0 < alone["nonfinite_rows"] < five["nonfinite_rows"]


def test_a_resume_in_async_counts_skipped_steps_once(tmp_path, data):
    """A checkpoint has the sum, which is trainer 0's from there on."""
    loss = {"mode": "async", "train.loss": "tests.support.models:nan_at_5_of_one"}
    changes = {**loss, "train.evaluate_at_end": False, "checkpoint.resume": True}
    run_cases(
        *(settings(data, tmp_path / "run", 1, 1, 2, **changes, **{"train.max_steps": n}) for n in (6, 8))
    )
    assert summary(tmp_path / "run")["steps"] == 8
    assert summary(tmp_path / "run")["skipped_steps"] == 1


def test_too_many_skipped_steps_end_a_job_as_failed(tmp_path, data):
    config = settings(data, tmp_path / "run", 1, 1, 2, **{"train.max_skipped": 2, "checkpoint.every": 2})
    config["train"]["loss"] = "tests.support.models:nan_from_5"
    job = Job(tmp_path, config)
    code, _, err = job.end()
    assert code == 1, err
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["message"] in err
    assert failure["code"] == 1
    assert "3 skipped in a row, more than train.max_skipped = 2: step 7 was skipped" in failure["message"]
    assert failure["message"].count("Largest values at trainer") == 1
    assert "Last good checkpoint: " in failure["message"]
    assert (tmp_path / "run" / "step-00000004" / "manifest.json").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_model_that_one_trainer_has_lost_ends_the_job(mode, tmp_path, data):
    """Buffers are each trainer's own: the others must neither wait for it nor go on."""
    config = settings(data, tmp_path / "run", 1, 1, 2, **{"mode": mode, "checkpoint.every": 4})
    config["model"]["class"] = "tests.support.models:Peak"
    code, _, err = Job(tmp_path, config).end()
    assert code == 1, err
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert "peak of the dense model has NaN or infinity on trainer 1 after step 8" in failure["message"]
    assert (tmp_path / "run" / "latest").resolve().name == "step-00000004"
    assert not (tmp_path / "run" / "summary.json").exists()


def test_sparse_gradients_of_several_trainers_are_refused_in_one_line(tmp_path, data):
    config = settings(data, tmp_path / "run", 1, 1, 2, **{"train.optimizer": {"name": "SparseAdam"}})
    config["model"]["class"] = "tests.support.models:Sparse"
    code, _, err = Job(tmp_path, config).end()
    assert code == 2, err
    text = "a parameter of shape [10, 1] has sparse gradients, which can't be summed over trainers"
    assert text in json.loads((tmp_path / "run" / "failure.json").read_text())["message"]


def test_fp16_skips_a_step_in_which_any_gradient_overflows(tmp_path, data):
    """On all trainers and for all rows, and nothing else of the run shows it."""
    steps = {"train.amp": "fp16", "train.evaluate_at_end": False, "checkpoint.every": 0}
    bad = {"train.loss": "tests.support.models:steep_at_5"}
    good = {"train.loss": "tests.support.models:squared"}
    runs = [("four", 4, bad), ("five", 5, bad), ("fine", 5, good)]
    run_cases(
        *(
            settings(data, tmp_path / name, 1, 1, 2, **{**steps, **loss, "train.max_steps": most})
            for name, most, loss in runs
        )
    )
    four, five, fine = (summary(tmp_path / name)["embedding"] for name, _, _ in runs)
    assert four["nonfinite_rows"] == fine["nonfinite_rows"] == 0
    assert five["nonfinite_rows"] == five["pulled_rows"] - four["pulled_rows"] > 0
    assert five["applied_rows"] == four["applied_rows"] < fine["applied_rows"]
    before, after = (trained_rows(tmp_path / name) for name in ("four", "five"))
    for table, (keys, rows, state, _) in before.items():
        kept = np.isin(after[table][0], keys)
        assert np.array_equal(after[table][1][kept], rows)
        assert np.array_equal(after[table][2][kept], state)
    dense = [
        torch.load(tmp_path / name / "latest" / "dense.pt", weights_only=True) for name in ("four", "five")
    ]
    for name, value in dense[0]["model"].items():
        assert torch.equal(value, dense[1]["model"][name])
    assert dense[1]["scaler"]["scale"] == dense[0]["scaler"]["scale"] / 2
