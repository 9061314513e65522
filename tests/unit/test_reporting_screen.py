"""The progress bar and the last words of a run."""

from __future__ import annotations

import io
import json
import re
import sys
from typing import Any

import pytest

from persia_hpc.reporting.events import JsonStream
from persia_hpc.reporting.screen import Screen, show_summary, summary_text

TRAIN: dict[str, Any] = {"event": "train", "num_steps": 40, "loss": 0.5, "auc": 0.7, "seconds": 1.0}
TRAIN |= {"samples_per_second": 1000.0, "staleness": 0.0}


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> tuple[Screen, io.StringIO]:
    monkeypatch.setenv("PERSIA_HPC_SCREEN", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    return Screen(stream), stream


@pytest.mark.parametrize("columns", [20, 40, 80, 132])
def test_a_line_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, stream = on_terminal(monkeypatch, columns)
    for step in (10, 40):
        screen.log({**TRAIN, "step": step, "left_seconds": 200.0, "waited": {"batch": 0.5, "allreduce": 0.1}})
    screen.busy("evaluates valid")
    screen.log({"event": "end"})
    lines = [line for line in re.split("[\r\n]", stream.getvalue()) if line.strip()]
    assert len(lines) == 3
    assert all(len(line) < columns for line in lines)
    assert "step 10 of 40" in lines[0] or columns == 20
    if columns == 132:
        assert ", 3 min left, loss 0.5000, waits 50% for batches, auc 0.7000, 1,000 samples/s" in lines[0]
        assert lines[2].rstrip().endswith("] step 40 of 40, evaluates valid")
    assert stream.getvalue().endswith("\n")


def test_a_file_gets_lines_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSIA_HPC_SCREEN", raising=False)
    monkeypatch.setattr("persia_hpc.reporting.screen.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    screen = Screen(stream)
    screen.log({**TRAIN, "step": 10})
    screen.busy("evaluates valid")
    screen.log({"event": "evaluate", "split": "valid", "step": 10, "auc": None, "undefined": {"auc": "why"}})
    screen.log({"event": "wait", "step": 10})
    screen.log({"event": "end"})
    assert stream.getvalue() == (
        "step 10 of 40, loss 0.5000, auc 0.7000, 1,000 samples/s, staleness 0.0\n"
        "step 10: undefined on valid: auc: why\n"
        "step 10: waits for new files\n"
    )


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


def test_json_lines_and_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    JsonStream(sys.stdout).log({**TRAIN, "step": 3, "loss": float("nan")})
    show_summary({"status": "completed", "steps": 3}, quiet=True, lines=True)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {**TRAIN, "step": 3, "loss": None},
        {"event": "summary", "status": "completed", "steps": 3},
    ]
    assert err == ""
