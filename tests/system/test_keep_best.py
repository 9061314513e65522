"""The checkpoint of the best evaluation is kept, and is what a run directory stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.checkpoint.choose import find_checkpoint
from persia_hpc.checkpoint.files import whole_checkpoints
from tests.support import models
from tests.support.follow import FIRST, SECOND, STEPS, THIRD, Drops, Folder
from tests.support.mpi import run_mpi
from tests.support.tiny import tiny_config, write_tiny

PROGRAMS = Path(__file__).with_name("programs")
SCRIPTED = {"train.metrics": ["tests.support.models:scripted"], "train.evaluate_every": 10}
STOP = {"train.early_stop": {"metric": "scripted", "patience": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [write_tiny(folder / "train.h5", 333), write_tiny(folder / "valid.h5", 150, seed=1)]


def train(data: list[str], run_dir: Path, values: list[float | None], /, **changes: Any) -> dict[str, Any]:
    models.SCRIPT[:] = values
    settings = {"run_dir": str(run_dir), "data.valid": [data[1]], "train.epochs": 9, "checkpoint.keep": 1}
    return ph.train(tiny_config(data[0], mode="sync", **{**settings, **SCRIPTED, **changes}), quiet=True)


def steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in whole_checkpoints(run_dir))


def best(run_dir: Path) -> tuple[str, Mapping[str, Any]]:
    return (run_dir / "best").readlink().name, json.loads((run_dir / "best.json").read_text())


def scores(run: Path, data: list[str], out: Path) -> np.ndarray:
    ph.load(run).predict([data[1]], out)
    with h5py.File(out) as file:
        return np.asarray(file["probability"])


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [20, 40]),
        ({"checkpoint.every": 10}, [20, 40]),  # begun before the evaluation that makes it the best
        ({"checkpoint.every": 5, "checkpoint.full_every": 7}, [5, 20, 40]),  # the changes since step 5
    ],
)
def test_the_best_is_what_predict_uses_and_the_latest_what_resume_does(
    data: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    kept: list[int],
) -> None:
    run, reference = tmp_path / "run", tmp_path / "reference"
    summary = train(data, run, [0.1, 0.5, 0.3, 0.4, 9.0], **STOP, **changes)
    assert (summary["status"], summary["steps"]) == ("stopped", 40)
    name = "step-00000020"
    found = {"metric": "scripted", "mode": "max", "value": 0.5, "step": 20, "checkpoint": name}
    assert summary["best"] == found
    assert best(run) == (name, found)
    assert steps(run) == kept
    train(data, reference, [], **{"train.max_steps": 20})
    capsys.readouterr()
    expected = scores(reference, data, tmp_path / "reference.h5")
    assert "using the best" not in capsys.readouterr().err
    assert np.array_equal(scores(run, data, tmp_path / "best.h5"), expected)
    said = capsys.readouterr().err
    for part in ("using the best checkpoint", name, "scripted 0.5000", f"the latest is {run / 'latest'}"):
        assert part in said
    assert not np.array_equal(scores(run / "latest", data, tmp_path / "latest.h5"), expected)
    assert find_checkpoint(run) == run.resolve() / name
    assert ph.load(run).step == 20


def test_a_resumed_run_knows_the_best_value_and_replaces_it_only_by_a_better_one(
    data: list[str], tmp_path: Path
) -> None:
    on, run = {"train.keep_best": "scripted"}, tmp_path / "run"
    resume = {"checkpoint.resume": True}
    train(data, run, [0.1, 0.5, 0.3], **on, **{"train.max_steps": 30})
    summary = train(data, run, [0.4, None, 0.5], **on, **resume, **{"train.max_steps": 60})
    assert summary["this_run"]["steps"] == 30, "it continued from another checkpoint than the latest"
    assert (summary["best"]["value"], summary["best"]["step"]) == (0.5, 20)
    assert steps(run) == [20, 60]
    summary = train(data, run, [0.6, 0.2], **on, **resume, **{"train.max_steps": 80})
    assert (summary["best"]["step"], best(run)[0], steps(run)) == (70, "step-00000070", [70, 80])
    # By another metric the search begins anew; without keep_best the best one is given up.
    summary = train(data, run, [], **resume, **{"train.keep_best": "auc", "train.max_steps": 90})
    assert (summary["best"]["metric"], summary["best"]["step"], best(run)[0]) == ("auc", 90, "step-00000090")
    summary = train(data, run, [], **resume, **{"train.max_steps": 95})
    assert summary["best"]["checkpoint"] is None
    assert not (run / "best").is_symlink()
    assert not (run / "best.json").exists()
    assert steps(run) == [95]


def test_patience_goes_on_after_a_resume_unless_another_metric_is_watched(
    data: list[str], tmp_path: Path
) -> None:
    def go_on(run: Path, until: int, values: list[float | None], **early: Any) -> tuple[str, int]:
        stop = {"metric": "scripted", "patience": 3, **early}
        changes = {"train.early_stop": stop, "train.max_steps": until, "checkpoint.resume": True}
        summary = train(data, run, values, **changes)
        return summary["status"], summary["steps"]

    for name, early, end in (
        ("same", {}, ("stopped", 40)),
        ("smaller", {"mode": "min"}, ("completed", 60)),
        ("another", {"metric": "logloss"}, ("completed", 60)),
    ):
        # The best value is 0, with which checkpoints of older versions say that nothing was watched.
        assert go_on(tmp_path / name, 30, [0.0, -1.0, -2.0]) == ("completed", 30)
        assert go_on(tmp_path / name, 60, [-3.0, -4.0, -5.0], **early) == end


@pytest.mark.parametrize("every", [0, 10])
def test_a_crash_between_the_evaluation_and_its_checkpoint_loses_nothing(
    data: list[str], tmp_path: Path, every: int
) -> None:
    class Crash(ph.Callback):
        def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
            if run.step == 20:
                run.session.saver.wait()  # for the checkpoint of this step that was begun before, if any was
                raise RuntimeError("here it crashes")

    run, changes = tmp_path / "run", {"train.keep_best": "scripted", "checkpoint.every": every}
    models.SCRIPT[:] = [0.1, 0.5]
    settings = {"run_dir": str(run), "data.valid": [data[1]], "train.epochs": 9, "train.max_steps": 40}
    config = tiny_config(data[0], mode="sync", **{**settings, **SCRIPTED, **changes})
    with pytest.raises(RuntimeError, match="here it crashes"):
        ph.train(config, quiet=True, callbacks=[Crash()])
    assert best(run)[0] == "step-00000010"
    assert steps(run)[-1] == (20 if every else 10)
    more = {**changes, "train.max_steps": 40, "checkpoint.resume": True}
    summary = train(data, run, [0.5, 0.3, 0.2], **more)
    assert (summary["best"]["value"], summary["best"]["step"]) == (0.5, 20)
    assert best(run)[0] == "step-00000020"


def test_a_best_checkpoint_that_is_gone_is_not_passed_over(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run, [0.5, 0.3], **{"train.keep_best": "scripted", "train.max_steps": 20})
    (run / "step-00000010").rename(run / "elsewhere")
    with pytest.raises(ph.UserError, match=r"best points to step-00000010, which isn't there.*latest"):
        ph.load(run)
    more = {"train.keep_best": "scripted", "train.max_steps": 30, "checkpoint.resume": True}
    assert train(data, run, [0.2], **more)["best"]["step"] == 30


def test_without_a_defined_value_nothing_is_the_best_and_nothing_stops(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.SCRIPT[:] = []
    settings = {"run_dir": str(tmp_path / "run"), "data.valid": [data[1]], "train.epochs": 9}
    summary = ph.train(tiny_config(data[0], mode="sync", **{**settings, **SCRIPTED, **STOP}))
    assert (summary["status"], summary["best"]) == ("completed", None)
    assert not (tmp_path / "run" / "best").is_symlink()
    said = capsys.readouterr().err
    line = "undefined on valid: scripted: the function returned None; not counted by keep_best and early_stop"
    assert said.count(line) == 1


def test_a_run_that_follows_files_keeps_its_best(data: list[str], tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.drop(FIRST)
    models.SCRIPT[:] = [0.1, 0.5, 0.3, 0.2]
    run = tmp_path / "run"
    settings = {"run_dir": str(run), "data.valid": [data[1]], "checkpoint.keep": 1, **SCRIPTED}
    config = folder.config(**settings, **{"train.keep_best": "scripted"})
    summary = ph.train(config, loggers=[Drops(folder, SECOND, THIRD)], quiet=True)
    assert (summary["steps"], summary["best"]["step"]) == (STEPS, 20)
    assert (best(run)[0], steps(run)) == ("step-00000020", [20, STEPS])


def test_several_ranks_keep_the_best_in_every_mode(data: list[str], tmp_path: Path) -> None:
    settings = {
        "ranks": {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2},
        "data.valid": [data[1]],
        "train.epochs": 9,
        "train.metrics": ["tests.support.models:falling"],
        "train.evaluate_every": 10,
        "train.early_stop": {"metric": "falling", "patience": 2},
        "checkpoint.keep": 1,
        "checkpoint.every": 5,
        "checkpoint.full_every": 2,
    }
    modes = {
        "hybrid": {"mode": "hybrid"},
        "exact": {"mode": "hybrid", "exact": True},
        "sync": {"mode": "sync"},
        "async": {"mode": "async"},
    }
    cases = [
        tiny_config(data[0], **{"run_dir": str(tmp_path / name), **settings, **mode})
        for name, mode in modes.items()
    ]
    run_mpi(6, PROGRAMS / "train_cases.py", json.dumps(cases), timeout=240)
    for run in (tmp_path / name for name in modes):
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["steps"], summary["best"]["step"]) == (30, 10)
        assert steps(run) == [5, 10, 30]
        events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        valid = [event for event in events if event["event"] == "evaluate"]
        metrics = ph.load(run).evaluate("valid")
        assert metrics["logloss"] == pytest.approx(valid[0]["logloss"], rel=1e-6)
        assert metrics["logloss"] != pytest.approx(valid[-1]["logloss"], rel=1e-6)
