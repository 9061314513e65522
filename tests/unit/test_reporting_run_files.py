"""Whatever a run's files hold, `status` and `report` tell what can be told, and which file is damaged."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.cli import main
from persia_hpc.config import config_text, load_config
from persia_hpc.launch.registry import read_failure, read_ranks, read_summary
from persia_hpc.reporting.run_files import number
from tests.support.tiny import tiny_config

TRAIN = {"event": "train", "step": 200, "num_steps": 400, "epoch": 1, "samples": 20000, "seconds": 3.0}
TRAIN |= {"loss": 0.5, "auc": 0.75, "samples_per_second": 1000.0, "staleness": 1.0}
EVENTS: list[dict[str, Any]] = [
    {"event": "resume", "step": 100},
    {**TRAIN, "step": 100},
    TRAIN,
    {"event": "evaluate", "split": "valid", "step": 200, "auc": 0.7, "logloss": 0.4, "samples": 100},
]
SUMMARY = {"status": "completed", "steps": 400, "stop_reason": None, "valid": {"auc": 0.7}}
FAILURE = {"world_rank": 1, "role": "trainer 0", "code": 1, "message": "no luck", "details": "", "time": 5.0}
CONFIG = config_text(load_config(tiny_config("train.h5")))
FILES = ("metrics.jsonl", "summary.json", "failure.json", "ranks/0.json", "slurm_job", "run.lock")
DEEP = b"[" * 100_000
BAD: list[tuple[str, bytes]] = [
    ("bytes", b"\xff\xfe\x00\x80"),
    ("deep", DEEP),
    ("deep-inside", b'{"status": ' * 700 + b"1" + b"}" * 700),
    ("list", b"[1, 2]"),
    ("number", b"7"),
    ("null", b"null"),
    ("empty", b""),
    ("half", b'{"status": "compl'),
    ("no-keys", b"{}"),
    ("types", b'{"status": [1], "steps": {}, "message": 3, "event": 4, "time": "x", "code": null}'),
    (
        "huge",
        b'{"status": "completed", "steps": 1' + b"0" * 4000 + b', "a": 1e999, "b": NaN, "c": -Infinity}',
    ),
    ("digits", b'{"steps": 1' + b"0" * 10_000 + b"}"),
    ("escapes", b'{"status": "\\u001b[2J\\u009b31m", "message": "\\u001b]0;x\\u0007\\n", "step\\u001b": 1}'),
    ("surrogate", b'{"status": "\\ud800", "message": "\\udfff", "split": "\\udc80"}'),
    ("nuls", b"\0" * 100),
]


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ranks").mkdir()
    (folder / "config.toml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def look(run: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """All commands that show a run: the larger exit code, and what they print."""
    capfd.readouterr()
    page = ["--html", str(run.parent / "page.html")]
    codes = [main(["status", str(run)]), main(["report", str(run)]), main(["report", str(run), *page])]
    out, err = capfd.readouterr()
    assert all(code in (0, 3) for code in codes), err
    assert "Traceback" not in err
    assert all(re.fullmatch(r"persia-hpc: error: .+", line) for line in err.splitlines())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out + err)
    read_summary(run), read_failure(run), read_ranks(run)
    return max(codes), out, err


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [bad for _, bad in BAD], ids=[kind for kind, _ in BAD])
def test_damaged_files(name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_bytes(content)
    code, out, err = look(run, capfd)
    assert out.startswith(f"{run}: ")
    if name != "metrics.jsonl":
        assert "step 200 of 400 (50 %)" in out
        assert "valid auc 0.7000, logloss 0.4000 at step 200" in out
    if code:
        assert all(str(run / name) in line for line in err.splitlines())
    if content in (b"\xff\xfe\x00\x80", DEEP, b"[1, 2]", b"") and name in ("summary.json", "failure.json"):
        assert code == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["folder", "fifo", "link to itself", "link to nothing"])
def test_something_else_in_place_of_a_file(
    name: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    make: dict[str, Callable[[], None]] = {
        "folder": (run / name).mkdir,
        "fifo": lambda: os.mkfifo(run / name),
        "link to itself": lambda: (run / name).symlink_to(run / name),
        "link to nothing": lambda: (run / name).symlink_to(run / "absent"),
    }
    make[kind]()
    look(run, capfd)


WORTHLESS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.just({})
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_field_may_be_missing_or_of_any_type(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path_factory.mktemp("runs") / "run")

    def mutated(values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        for name in data.draw(st.lists(st.sampled_from(sorted(values)), max_size=3)):
            if data.draw(st.booleans()):
                values[name] = data.draw(WORTHLESS)
            else:
                values.pop(name, None)
        return values

    lines = [json.dumps(mutated(event)) for event in EVENTS]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, values in (("summary.json", SUMMARY), ("failure.json", FAILURE)):
        if data.draw(st.booleans()):
            (run / name).write_text(json.dumps(mutated(values)))
    look(run, capfd)


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Among them a half line with the next event glued to it, as earlier versions wrote it."""
    run = make_run(tmp_path / "run")
    lines = [json.dumps(event) for event in EVENTS]
    glued = lines[1][:50] + lines[0]
    (run / "metrics.jsonl").write_text("\n".join([lines[0], glued, "\x1b[2J", *lines[1:], '{"event": "tr']))
    code, out, err = look(run, capfd)
    assert (code, err) == (0, "")
    assert "2 damaged lines of metrics.jsonl left out" in out
    assert "step 200 of 400 (50 %), epoch 1" in out


def test_a_failure_that_cannot_be_read_is_still_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    (run / "failure.json").write_bytes(b"\xff")
    code, out, err = look(run, capfd)
    assert code == 3
    assert out.startswith(f"{run}: failed\n")
    assert f"{run / 'failure.json'} is damaged" in err


def test_numbers_are_finite_numbers() -> None:
    values = {"a": 1, "b": 0.5, "c": True, "d": "1", "e": None, "f": 10**400, "g": float("nan"), "h": -1e999}
    assert [number(values, name) for name in "abcdefghi"] == [1.0, 0.5] + [None] * 7
    assert number([1], "a") is None
