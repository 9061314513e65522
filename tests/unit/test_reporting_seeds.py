"""Mean and spread over the runs of several seeds, as `report` and `status` show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from persia_hpc.cli import main
from persia_hpc.reporting.seeds import seed_runs, summarise

AUC = {1: 0.71, 2: 0.74, 10: 0.72}


def write_run(directory: Path, seed: int, **summary: object) -> Path:
    run = directory / f"seed-{seed}"
    run.mkdir(parents=True)
    if summary:
        (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for seed, auc in AUC.items():
        test = {"auc": auc, "samples": 1000, "undefined": {}}
        write_run(tmp_path, seed, status="completed", test=test, valid=None, steps=40, samples_per_second=1e4)
    return tmp_path


def test_mean_and_spread_are_those_of_numpy(directory: Path) -> None:
    summary = summarise(seed_runs(directory))
    found = {each.metric: each for each in summary.spreads}
    assert list(found) == ["test.auc", "steps", "samples_per_second"]
    values = list(AUC.values())
    assert found["test.auc"].values == AUC
    assert found["test.auc"].mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found["test.auc"].std == pytest.approx(np.std(values, ddof=1), rel=1e-12)


def test_only_runs_that_have_ended_count(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(directory, 3, status="interrupted", test={"auc": 0.1})
    write_run(directory, 4)
    failed = write_run(directory, 5)
    (failed / "failure.json").write_text('{"message": "no room"}')
    (directory / "seed-x").mkdir()
    (directory / "seed-7").touch()
    assert main(["report", str(directory)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 seeds, 3 of them ended: 1, 2, 10\n")
    for line in ("3 is left out: interrupted", "4 is left out: not ended", "5 is left out: failed: no room"):
        assert f"seed {line}\n" in out
    words = next(line for line in out.splitlines() if line.startswith("test.auc")).split()
    assert words == ["test.auc", "0.723333", "±", "0.015", "0.71", "0.74", "3"]


def test_what_a_job_has_evaluated_behind_a_run_counts(directory: Path) -> None:
    for seed, auc in AUC.items():
        (directory / f"seed-{seed}" / "evaluation.json").write_text(
            json.dumps({"auc": auc / 2, "gauc": None})
        )
    spreads = {each.metric: each for each in summarise(seed_runs(directory)).spreads}
    assert spreads["evaluation.auc"].mean == pytest.approx(spreads["test.auc"].mean / 2)
    assert "evaluation.gauc" not in spreads


def test_one_seed_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, 1, status="stopped", test={"auc": 0.5})
    assert main(["report", str(tmp_path)]) == 0
    assert "±" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["{", "[]", '{"status": "completed", "test": {"auc": 1e999}}'])
def test_a_damaged_run_is_named_behind_the_rest(
    directory: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (directory / "seed-2" / "summary.json").write_text(damage)
    code = main(["report", str(directory)])
    said = capsys.readouterr()
    assert "0.715" in said.out  # of seeds 1 and 10
    if damage.startswith('{"'):
        assert code == 0
    else:
        assert code == 3
        assert "seed-2/summary.json is damaged" in said.err


def test_status_says_how_far_each_seed_is(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "slurm_job").write_text("4711\n")
    assert main(["status", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("seed-")[2] for line in lines[:3]] == [f"{s}: completed: 40 steps" for s in AUC]
    assert lines[3].endswith(f"persia-hpc report {directory}")
    (directory / "seed-2" / "summary.json").write_text("{")
    assert main(["status", str(directory)]) == 3
    assert "seed-2/summary.json is damaged" in capsys.readouterr().err


def test_values_beyond_all_bounds_are_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, auc in enumerate((1.7e308, 1.7e308, -1.7e308)):
        write_run(tmp_path, seed, status="completed", test={"auc": auc})
    assert main(["report", str(tmp_path)]) == 0
    assert "inf" in capsys.readouterr().out
