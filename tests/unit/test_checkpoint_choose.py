"""Which checkpoint a path stands for, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persia_hpc.checkpoint.choose import find_checkpoint, say_choice
from persia_hpc.checkpoint.files import name_best, prune, step_name, whole_checkpoints
from persia_hpc.errors import UserError

NOTE = {"metric": "auc", "mode": "max", "value": 0.75}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for step in (10, 20, 30):
        (run / step_name(step)).mkdir(parents=True)
        (run / step_name(step) / "manifest.json").write_text("{}")
    (run / "latest").symlink_to(step_name(30))
    return run


def test_a_run_stands_for_its_best_checkpoint_else_for_the_latest(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_checkpoint(run) == run / step_name(30)
    say_choice(run)
    assert capsys.readouterr().err == ""
    name_best(run, {**NOTE, "step": 20})
    assert find_checkpoint(run) == find_checkpoint(run / "best") == run / step_name(20)
    assert find_checkpoint(run / "latest") == run / step_name(30)
    say_choice(run)
    text = (
        f"{run}: using the best checkpoint, step-00000020 (valid auc 0.7500); the latest is {run / 'latest'}"
    )
    assert capsys.readouterr().err == f"persia-hpc: {text}\n"
    for named in (run / "latest", run / "best", run / step_name(10)):
        say_choice(named)
        assert capsys.readouterr().err == ""
    name_best(run, {**NOTE, "step": 30})
    say_choice(run)
    assert capsys.readouterr().err.endswith("it is also the latest\n")
    name_best(run, None)
    assert sorted(p.name for p in run.iterdir()) == ["latest", *map(step_name, (10, 20, 30))]


@pytest.mark.parametrize(
    "note",
    [
        None,
        "{",
        "[]",
        pytest.param("[" * 100_000, id="deep"),
        {"checkpoint": step_name(20)},
        {"metric": "a\x1b[31m"},
        pytest.param({"metric": "auc", "value": 10**400}, id="huge"),
    ],
)
def test_a_note_that_says_nothing_sensible_is_left_out(
    run: Path, capsys: pytest.CaptureFixture[str], note: str | dict[str, object] | None
) -> None:
    name_best(run, {**NOTE, "step": 20})
    if note is None:
        (run / "best.json").unlink()
    else:
        damaged = {"checkpoint": step_name(20), "value": 0.5, **note} if isinstance(note, dict) else note
        (run / "best.json").write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    say_choice(run)
    assert "best checkpoint, step-00000020; the latest" in capsys.readouterr().err
    assert find_checkpoint(run) == run / step_name(20)


def test_a_link_out_of_the_run_is_not_followed_and_a_missing_checkpoint_is_named(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / step_name(99)).mkdir()
    (tmp_path / step_name(99) / "manifest.json").write_text("{}")
    (run / "best").symlink_to(tmp_path / step_name(99))
    assert find_checkpoint(run) == run / step_name(30)
    name_best(run, {**NOTE, "step": 20})
    (run / step_name(20) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"best points to step-00000020, which isn't there; .*latest"):
        find_checkpoint(run)


def test_the_best_one_is_kept(run: Path) -> None:
    name_best(run, {**NOTE, "step": 10})
    prune(run, keep=1, keep_every=0)
    assert [path.name for path in whole_checkpoints(run)] == [step_name(30), step_name(10)]
