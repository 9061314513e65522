"""persia-hpc status: lines for a run in each state, and what Slurm says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.commands.status import read_status
from persia_hpc.launch.slurm_account import slurm_state

TRAIN = {
    "event": "train",
    "num_steps": 400,
    "epoch": 1,
    "loss": 0.5,
    "auc": 0.75,
    "samples_per_second": 1000.0,
}


def write_events(directory: Path, *events: dict[str, object]) -> None:
    (directory / "config.toml").touch()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def train(step: int) -> dict[str, object]:
    return {**TRAIN, "step": step, "samples": step * 100}


def text(directory: Path, slurm: str | None = None) -> str:
    status = read_status(directory, (directory / "metrics.jsonl").stat().st_mtime + 7)
    assert status.problems == []
    return "\n".join(status.lines([] if slurm is None else [slurm]))


def test_run_under_way(tmp_path: Path) -> None:
    write_events(
        tmp_path,
        train(100),
        {"event": "evaluate", "split": "valid", "step": 100, "auc": 0.7},
        {"event": "evaluate", "split": "valid", "step": 150, "auc": 0.72},
        {"event": "skip", "step": 120, "skipped_steps": 1, "why": "the loss had NaN or infinity"},
        {"event": "skip", "step": 170, "skipped_steps": 2, "why": "the loss had NaN or infinity"},
        train(200),
    )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')  # half a line, as a reader may meet it
    said = text(tmp_path, "Slurm job 5: RUNNING")
    for part in (
        "under way\nSlurm job 5: RUNNING\n",
        "step 200 of 400 (50 %), epoch 1, 1,000 samples/s, about 20 s left",
        "loss 0.5000, auc 0.7500",
        "2 steps skipped, the last of them step 170",
        "valid auc 0.7200 at step 150",
        "last news 7 s ago",
    ):
        assert part in said


def test_every_metric_and_the_best_checkpoint(tmp_path: Path) -> None:
    undefined = {"undefined": {"auc": "all labels are 0"}, "uncounted": ["early_stop"]}
    event = {"event": "evaluate", "split": "valid", "step": 100, "samples": 10, "auc": None, "gauc": 0.5}
    write_events(tmp_path, train(100), {**event, **undefined})
    best = {"metric": "gauc", "mode": "max", "value": 0.625, "step": 80, "checkpoint": "step-00000080"}
    (tmp_path / "best.json").write_text(json.dumps(best))
    said = text(tmp_path)
    assert "valid auc undefined, gauc 0.5000 at step 100\n  undefined: auc: all labels are 0" in said
    assert "best checkpoint: step-00000080, valid gauc 0.6250" in said


def test_run_that_has_ended_and_one_that_goes_on(tmp_path: Path) -> None:
    end = {"event": "end", "status": "interrupted", "steps": 200}
    (tmp_path / "summary.json").write_text(json.dumps({"status": "interrupted", "steps": 200}))
    write_events(tmp_path, train(200), end)
    assert ": interrupted: 200 steps" in text(tmp_path)
    assert "left" not in text(tmp_path)
    write_events(tmp_path, train(200), end, {"event": "resume", "step": 200}, train(300))
    assert "under way\nresumed 1 time\nstep 300 of 400" in text(tmp_path)
    (tmp_path / "failure.json").write_text(json.dumps({"message": "no luck"}))
    assert ": failed: no luck" in text(tmp_path)


def test_a_run_that_waits_for_files_and_one_that_has_got_some(tmp_path: Path) -> None:
    wait, data = {"event": "wait", "step": 200}, {"event": "data", "step": 200, "files": 1}
    write_events(tmp_path, train(200), wait)
    assert f"{tmp_path}: waits for new files\n" in text(tmp_path)
    assert "last news 7 s ago" in text(tmp_path)
    write_events(tmp_path, train(200), wait, data)
    assert f"{tmp_path}: under way\n" in text(tmp_path)


def test_names_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/job-12"
    run.mkdir(parents=True)
    (run / "slurm_job").write_text("12\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["status", "12"]) == 0
    assert capsys.readouterr().out == "runs/job-12: no step trained yet\n"
    assert main(["status", "13"]) == 2
    assert "runs/job-13 is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("echo 'RUNNING|1:02|4:00:00|n1'", "Slurm job 12: RUNNING, 1:02 of 4:00:00, n1"),
        ("echo 'slurm_load_jobs error: Invalid job id' >&2; exit 1", "Slurm job 12: not in the queue"),
    ],
)
def test_what_slurm_says(says: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm_job").write_text("12\n")
    program = tmp_path / "squeue"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_state(tmp_path) == expected


def test_json_has_what_the_lines_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"event": "evaluate", "split": "valid", "step": 100, "auc": None}
    write_events(tmp_path, train(100), evaluation, {**train(200), "left_seconds": 12.5})
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert (found["state"], found["resumes"], found["problems"]) == ("under way", 0, [])
    assert found["last"]["train"]["left_seconds"] == 12.5
    assert found["last"]["evaluate valid"] == evaluation
    assert found["age_seconds"] >= 0
    assert found["slurm"] == {"job": None, "queue": None, "account": None}
    (tmp_path / "summary.json").write_text("{")
    assert main(["status", str(tmp_path), "--json"]) == 3
    assert "summary.json" in json.loads(capsys.readouterr().out)["problems"][0]


def test_the_time_left_is_that_of_the_run_itself(tmp_path: Path) -> None:
    write_events(tmp_path, {**train(200), "left_seconds": 240.0})
    assert "about 4 min left" in text(tmp_path)
