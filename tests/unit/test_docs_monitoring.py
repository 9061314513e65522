"""The loggers of docs/monitoring.md write a run's numbers offline, where W&B and MLflow are installed."""

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
    logger = loggers()["WeightsAndBiases"](project="p", mode="offline", dir=str(tmp_path))
    for event in EVENTS:
        logger.log(event)
    wandb.teardown()  # its process has written everything then
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*.wandb"))
    for name in (b"train/loss", b"parameter_server/0/rss_bytes", b"valid/recall@10"):
        assert name in written


def test_mlflow_takes_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")  # the page's program imports it
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    logger = loggers()["MLflow"]("e")
    for event in EVENTS:
        logger.log(event)
    found = {path.relative_to(path.parents[i]).as_posix() for i in range(3) for path in tmp_path.rglob("*")}
    assert {"train/loss", "parameter_server/0/rss_bytes", "valid/recall_at_10"} <= found
