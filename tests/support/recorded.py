"""Writes run directories as runs leave them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persia_hpc.config import config_text, load_config
from tests.support.tiny import tiny_config

PHASES = {
    "parameter_server": {"idle": 6.0, "pull": 1.5, "push": 1.25, "other": 0.25, "total": 9.0},
    "embedding_worker": {
        "idle": 3.0,
        "read": 0.5,
        "dedup": 2.0,
        "pull": 0.75,
        "feed": 1.0,
        "push": 0.75,
        "other": 0.5,
        "total": 8.5,
    },
    "trainer": {
        "wait": 0.25,
        "pool": 1.0,
        "forward": 2.0,
        "backward": 3.0,
        "push": 0.5,
        "allreduce": 0.75,
        "optimizer": 0.4375,
        "other": 0.0625,
        "total": 8.0,
    },
}
SUMMARY: dict[str, Any] = {
    "schema_version": 1,
    "status": "completed",
    "stop_reason": None,
    "mode": "hybrid",
    "reducer": "mpi",
    "roles": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 2},
    "steps": 4321,
    "samples": 1106176,
    "skipped_steps": 0,
    "this_run": {"steps": 4000, "samples": 1024000},
    "train_seconds": 8.123456789,
    "evaluate_seconds": 0.4567891,
    "checkpoint_seconds": 0.0123456,
    "checkpoints": {"written": 3, "write_seconds": 0.7654321},
    "samples_per_second": 126054.26,
    "valid": {"samples": 3256, "auc": 0.9038504245166491, "logloss": 0.3221317268391764},
    "test": {"samples": 16281, "auc": None, "logloss": 0.31988, "undefined": {"auc": "all labels are 0"}},
    "best": {"metric": "auc", "mode": "max", "value": 0.9038504245166491, "step": 4321, "checkpoint": None},
    "staleness": {"bound": 4, "max": 4, "histogram": {"0": 6, "1": 8, "2": 12, "3": 30, "4": 634}},
    "embedding": {
        "rows": 12345678,
        "bytes": 4744904321,
        "pulled_rows": 1000,
        "applied_rows": 990,
        "evicted_in_flight_rows": 4,
        "unadmitted_rows": 3,
        "nonfinite_rows": 2,
        "dropped_rows": 1,
        "evicted_rows": 77,
        "disk_rows": 8765432,
        "disk_bytes": 987654321,
        "to_disk_rows": 9876543,
        "from_disk_rows": 1111111,
        "disk_full_rows": 7,
    },
    "follow": None,
    "phase_seconds": {
        role: {phase: {"mean": s, "max": 1.125 * s} for phase, s in phases.items()}
        for role, phases in PHASES.items()
    },
    "versions": {"package": "0.1.0"},
}


def train_event(step: int, num_steps: int, seconds: float, **more: float) -> dict[str, Any]:
    """An event as trainer 0 writes it about once a second."""
    return {
        "event": "train",
        "step": step,
        "num_steps": num_steps,
        "epoch": 0,
        "samples": 256 * step,
        "seconds": seconds,
        "loss": 0.3 + 1 / step,
        "auc": 0.9 - 1 / (step + 2),
        "samples_per_second": 126000.5,
        "staleness": 3.5,
        **more,
    }


def evaluate_event(step: int, **metrics: float) -> dict[str, Any]:
    """An event of an evaluation of the valid split."""
    values = {"auc": 0.9 - 1 / (step + 1), "logloss": 0.3 + 1 / (step + 1), **metrics}
    return {"event": "evaluate", "split": "valid", "step": step, "samples": 3256, **values}


def some_events(num_steps: int, every: int = 100) -> list[dict[str, Any]]:
    """Events of a run from its first step to its last."""
    events: list[dict[str, Any]] = []
    for step in range(every, num_steps + 1, every):
        events.append(train_event(step, num_steps, step / 100))
        if step % (5 * every) == 0:
            events.append(evaluate_event(step))
    return [*events, {"event": "end", "status": "completed", "steps": num_steps}]


def write_record(
    folder: Path,
    events: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run directory; changes: of the configuration."""
    folder.mkdir(parents=True)
    config = load_config(tiny_config("train.h5", **changes))
    (folder / "config.toml").write_text(config_text(config))
    (folder / "summary.json").write_text(json.dumps(SUMMARY if summary is None else summary))
    lines = [json.dumps(event) for event in (some_events(4000) if events is None else events)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder
