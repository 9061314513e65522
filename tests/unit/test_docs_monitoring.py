"""The loggers of docs/monitoring.md write a run's numbers offline, to W&B and MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "monitoring.md"
EVENTS: list[dict[str, Any]] = [
    {"event": "train", "step": 1, "loss": 0.75},
    {"event": "telemetry", "role": "parameter_server", "rank": 0, "time": 1.0, "step": 3, "rss_bytes": 4096},
    {"event": "evaluate", "split": "valid", "step": 2, "auc": 0.625, "recall@10": 0.5},
    {"event": "end", "status": "completed", "steps": 2},
]


def loggers() -> dict[str, Any]:
    """What the page's program defines, without its run."""
    (program,) = [p for p in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "wandb" in p]
    made: dict[str, Any] = {}
    exec(program.partition("\nif __name__")[0], made)
    return made


def test_weights_and_biases_takes_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for folder in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{folder}_DIR", str(tmp_path / folder))
    logger = loggers()["WeightsAndBiases"](project="p", mode="offline", dir=str(tmp_path))
    for event in EVENTS:
        logger.log(event)
    wandb.teardown()  # its process has written everything then
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*.wandb"))
    for part in (
        b"train/loss",
        b"0.75",
        b"parameter_server/0/rss_bytes",
        b"4096",
        b"valid/recall@10",
        b"0.625",
    ):
        assert part in written


def test_mlflow_takes_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")  # the page's program imports it
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    logger = loggers()["MLflow"]("e")
    for event in EVENTS:
        logger.log(event)
    values = {
        ("train/loss", "0.75 1"),
        ("parameter_server/0/rss_bytes", "4096.0 3"),
        ("valid/recall_at_10", "0.5 2"),
    }
    for name, value_and_step in values:
        (file,) = tmp_path.glob(f"*/*/metrics/{name}")
        assert file.read_text().rstrip().endswith(f" {value_and_step}")
