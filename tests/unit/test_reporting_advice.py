"""What a report says to change follows from what the run's ranks waited for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from persia_hpc.reporting.advice import advice, spent, stages
from persia_hpc.reporting.run_record import RunRecord
from tests.support.recorded import SUMMARY, write_record


def told(folder: Path, phases: dict[str, dict[str, float]], **changes: Any) -> str:
    """The advice on a run in which these phases took other seconds."""
    summary = copy.deepcopy(SUMMARY)
    for role, seconds in phases.items():
        for phase, value in seconds.items():
            summary["phase_seconds"][role][phase] = {"mean": value, "max": value}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            summary[part][key] = value
        else:
            summary[part] = value
    return "\n".join(advice(RunRecord(write_record(folder / "run", summary=summary))))


IDLE = {"trainer": {"wait": 7.0}}


@pytest.mark.parametrize(
    ("phases", "part"),
    [
        ({}, "The trainers are the bottleneck: they waited only 3% of their time"),
        ({"trainer": {"allreduce": 90.0}}, "the sum of dense gradients"),
        ({**IDLE, "parameter_server": {"idle": 0.5}}, "The parameter servers worked 86% of theirs"),
        ({**IDLE, "embedding_worker": {"idle": 0.1}}, "raise embedding_workers"),
        ({**IDLE, "embedding_worker": {"read": 30.0, "idle": 0.5}}, "reading threads"),
        (
            {**IDLE, "embedding_worker": {"idle": 30.0}, "parameter_server": {"idle": 30.0}},
            "above 4 lets more",
        ),
    ],
)
def test_bottleneck(phases: dict[str, dict[str, float]], part: str, tmp_path: Path) -> None:
    assert part in told(tmp_path, phases).splitlines()[0]


def test_one_rank_more_takes_its_share_of_the_work(tmp_path: Path) -> None:
    run = RunRecord(write_record(tmp_path / "run"))
    slowest, second, *_ = stages(run)
    assert (slowest.name, second.name) == ("trainers", "embedding workers")
    assert slowest.seconds == pytest.approx(7.75 / 4000)
    # 2 trainers become 3: their work but AllReduce and optimizer, 6.5625 s, takes two thirds of the time.
    gain = 7.75 / (7.75 - 6.5625 / 3) - 1
    assert (
        f"One trainer more, with a core of its own, would bring at most {gain:+.0%} samples/s"
        in "\n".join(advice(run))
    )


def test_other_causes(tmp_path: Path) -> None:
    assert "went into evaluations" not in told(tmp_path / "a", {})
    assert "went into evaluations" in told(tmp_path / "b", {}, evaluate_seconds=3.0)
    assert "went into checkpoints" in told(tmp_path / "c", {}, checkpoint_seconds=3.0)
    assert "0.40% of the pulled rows were evicted" in told(tmp_path / "d", {})
    assert "were evicted" not in told(tmp_path / "e", {}, embedding__evicted_in_flight_rows=0)
    assert "3 steps changed nothing" in told(tmp_path / "f", {}, skipped_steps=3)


def test_an_empty_summary_gives_no_advice(tmp_path: Path) -> None:
    run = RunRecord(
        write_record(tmp_path / "run", summary={"phase_seconds": {"trainer": 3}, "embedding": []})
    )
    assert advice(run) == []
    assert spent(run) == []
