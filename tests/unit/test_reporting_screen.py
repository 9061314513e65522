"""The progress bar and the last words of a run."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from persia_hpc.reporting.screen import Screen, summary_text

TRAIN: dict[str, Any] = {"event": "train", "num_steps": 40, "loss": 0.5, "auc": 0.7, "seconds": 1.0}
TRAIN |= {"samples_per_second": 1000.0, "staleness": 0.0}


def test_no_comma_stands_alone_on_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSIA_HPC_SCREEN", "1")
    stream = io.StringIO()
    screen = Screen(stream)
    for step in (10, 40):
        screen.log({**TRAIN, "step": step})
    screen.log({"event": "end"})
    bars = re.findall(r"\d+/40 \[[^\]]*\][^\r\n]*", stream.getvalue())
    assert any("], loss 0.5000, auc 0.7000, 1,000 samples/s" in bar for bar in bars)
    assert " , " not in stream.getvalue()


def test_one_process_is_sync_whatever_the_mode() -> None:
    summary: dict[str, Any] = {
        "status": "completed",
        "stop_reason": None,
        "skipped_steps": 0,
        "best": None,
        "steps": 3,
        "samples": 30,
        "train_seconds": 1.0,
        "samples_per_second": 30.0,
        "mode": "hybrid",
        "roles": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1},
        "staleness": {"bound": 0, "max": 0},
        "valid": None,
        "test": None,
        "run_dir": "r",
        "versions": {"mpi": "none (one process)"},
    }
    assert "; sync, in one process, staleness at most 0 (bound 0)" in summary_text(summary)
    assert "; hybrid, staleness" in summary_text({**summary, "versions": {"mpi": "MPICH 5"}})
