"""What sacct says becomes one line; where it says nothing, there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from persia_hpc.cli import main
from persia_hpc.launch.slurm_account import slurm_account, slurm_job

ENDED = """\
12|12|COMPLETED|3600|14:24:00|57600|
12.batch|12.batch|COMPLETED|3600|00:01:00.500|57600|812K
12.0|12.0|COMPLETED|3590|14:22:59.500|57440|4194304K
"""
RUNNING = "12|12|RUNNING|90|00:00:00|1440|\n12.0|12.0|RUNNING|89|00:00:00|1424|\n"
TASK = "7_1|7|RUNNING|1|00:00:00|1|\n7_2|12|RUNNING|90|00:00:00|1440|\n7_2.0|12.0|RUNNING|89|00:00:00|1424|\n"
LIVE = "12.batch|00:00:06|1|20M\n12.0|00:05:51|4|3.5G\n"  # of 16 cores, for 90 s


def says(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, more: str = "", job: str = "12") -> None:
    (folder / "slurm_job").write_text(f"{job}\n")
    (folder / "answer").write_text(answer)
    (folder / "live").write_text(LIVE)
    for name, table in (("sacct", "answer"), ("sstat", "live")):
        read = f'while read -r line; do echo "$line"; done < {folder}/{table}'
        program = folder / name
        program.write_text(f"#!/bin/sh\n{read}\n{more}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (ENDED, "COMPLETED, 60 min elapsed, CPU efficiency 90%, peak memory of a task 4,096.0 MiB"),
        (RUNNING, "RUNNING, 90 s elapsed, CPU efficiency 98%, peak memory of a task 3,584.0 MiB"),
        ("12|12|CANCELLED by 0|x||x|1x\n", "CANCELLED by 0"),
    ],
)
def test_account(answer: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(tmp_path, monkeypatch, answer)
    account = slurm_account(tmp_path)
    assert account is not None
    assert account.text() == f"Slurm's account: {line}"


@pytest.mark.parametrize("answer", ["", "13|13|COMPLETED|1|00:01|1|\n", "no table\n", "||||||\n", "12|2|3\n"])
def test_no_account(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(tmp_path, monkeypatch, answer, "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm_account(tmp_path) is None


def test_account_of_a_task_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sstat is asked by the number that the task has as a job of its own."""
    says(tmp_path, monkeypatch, TASK, 'echo "$@" >>"${0%/*}/asked"', job="7_2")
    account = slurm_account(tmp_path)
    assert account is not None
    assert (account.elapsed_seconds, account.cpu_efficiency) == (90.0, pytest.approx(0.98, abs=0.01))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--jobs 7_2 " in asked[0]
    assert "--jobs 12 " in asked[1]


@pytest.mark.parametrize(
    ("text", "job"), [("12", "12"), ("12_3", "12_3"), ("12_", None), ("_3", None), ("1_2_3", None)]
)
def test_ids_of_jobs(text: str, job: str | None, tmp_path: Path) -> None:
    (tmp_path / "slurm_job").write_text(f"{text}\n")
    assert slurm_job(tmp_path) == job


def test_status_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(tmp_path, monkeypatch, ENDED)
    assert main(["status", str(tmp_path)]) == 0
    assert "\nSlurm's account: COMPLETED, 60 min elapsed, CPU efficiency 90%" in capsys.readouterr().out
