"""The bundled data with one NaN loss: it trains to what it would have reached without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import persia_hpc as ph
from persia_hpc.preprocess import adult
from persia_hpc.trainer.driver import bce

BUNDLED = Path(__file__).parents[2] / "datasets" / "adult"
BAD = 50  # of 115 steps


def nan_once(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return bce(logits, batch) * (torch.nan if batch.step == BAD else 1)


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
    summary = ph.train(config, quiet=True)
    assert (summary["status"], summary["steps"], summary["skipped_steps"]) == ("completed", 115, 1)
    assert summary["test"]["auc"] >= 0.9045
