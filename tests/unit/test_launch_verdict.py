"""The last words about a job that a signal has ended: under Slurm they say how to leave a bad node out."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from persia_hpc.launch.deaths import Death
from persia_hpc.launch.registry import RankRecord
from persia_hpc.launch.verdict import Ending, verdict

RANK = RankRecord(3, 4711, "n17", "pid:[1]", 1, role="trainer", role_rank=0)


def last_words(run_dir: Path) -> tuple[int, str]:
    relay = SimpleNamespace(
        errors=[], aborted=lambda _: None, lost_proxy=lambda: False, exit_signal=lambda *_: None
    )
    return verdict(
        Ending(
            run_dir=run_dir,
            launcher="srun",
            launcher_code=137,
            launcher_death=None,
            launcher_pid=1,
            ranks={3: RANK},
            first_death=Death(RANK, 0.0, signal.SIGBUS),
            signals=(),
            asked=False,
            in_vain=False,
            grace_seconds=1.0,
            out=relay,  # type: ignore[arg-type]
            err=relay,  # type: ignore[arg-type]
        )
    )


def test_under_slurm_a_bad_node_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = "rank 3 (trainer 0, pid 4711) was killed by signal 7 (SIGBUS); the job was ended"
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert last_words(tmp_path) == (135, died)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    hint = "; if node n17 does it again: persia-hpc submit ... --extra=--exclude=n17"
    assert last_words(tmp_path) == (135, died + hint)
