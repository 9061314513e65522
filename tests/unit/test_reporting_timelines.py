"""The events of a run: all of a short one, enough of a long one, in its order and on one clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.reporting import timelines
from persia_hpc.reporting.run_files import read_event
from persia_hpc.reporting.timelines import (
    OTHER_EVENTS,
    TRAIN_EVENTS,
    Timeline,
    read_timeline,
    thinned,
)
from tests.support.recorded import evaluate_event, some_events, train_event


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_short_file_is_read_whole_but_for_half_a_line(tmp_path: Path) -> None:
    events = some_events(3000)
    path = write(tmp_path / "metrics.jsonl", events)
    with path.open("a") as file:
        file.write('no event\n{"event": "tra')
    timeline, problem = read_timeline(path)
    assert problem is None
    assert list(timeline.events) == events
    assert timeline.damaged == 1


def test_of_a_long_file_few_lines_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    for step in range(1, 60_001):
        events.append(train_event(step, 60_000, step / 7))
        if step % 5 == 0:
            events.append(evaluate_event(step))
        if step == 33_333:
            events.append({"event": "resume", "step": step})
    events.append({"event": "end", "status": "completed", "steps": 60_000})
    parsed = []
    monkeypatch.setattr(timelines, "read_event", lambda line: parsed.append(line) or read_event(line))
    timeline, problem = read_timeline(write(tmp_path / "metrics.jsonl", events))
    assert problem is None
    assert len(parsed) <= TRAIN_EVENTS + 2 * OTHER_EVENTS + 20
    assert timeline.kinds("resume", "end") == [{"event": "resume", "step": 33_333}, events[-1]]
    steps = [event["step"] for event in timeline.kinds("train")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 60_000
    assert max(b - a for a, b in zip([0, *steps], steps, strict=False)) <= 2 * 60_000 / TRAIN_EVENTS
    assert len(timeline.kinds("evaluate")) >= OTHER_EVENTS


def test_a_resumed_run_shows_each_step_once_and_time_goes_on() -> None:
    first = [train_event(step, 400, step / 10) for step in range(100, 301, 100)]
    again = [train_event(step, 400, (step - 200) / 5, loss=7.0) for step in range(250, 401, 50)]
    evaluations = [evaluate_event(150), evaluate_event(275)]
    timeline = Timeline(
        [*first[:2], evaluations[0], first[2], evaluations[1], {"event": "resume", "step": 200}, *again]
    )
    assert [step for step, _ in timeline.series("train", "loss")] == [100, 200, 250, 300, 350, 400]
    assert [loss for _, loss in timeline.series("train", "loss")][2:] == [7.0] * 4
    seconds = [second for second, _ in timeline.series("train", "loss", by_time=True)]
    assert seconds == [10, 20, 40, 50, 60, 70]  # 30 s passed until the run was stopped
    assert timeline.series("evaluate", "auc", "valid", by_time=True) == [(15.0, evaluations[0]["auc"])]
    assert timeline.series("evaluate", "auc", "test") == []


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=700), st.integers(4, 100))
def test_thinned_lines_keep_their_ends_and_peaks(values: list[float], limit: int) -> None:
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thinned(points, limit)
    assert len(kept) <= limit or len(points) <= limit
    assert set(kept) <= set(points)
    assert [kept[0], kept[-1]] == [points[0], points[-1]]
    assert {min(y for _, y in kept), max(y for _, y in kept)} == {min(values), max(values)}
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_no_file_and_no_usual_file(tmp_path: Path) -> None:
    assert read_timeline(tmp_path / "none") == (Timeline(), None)
    assert read_timeline(write(tmp_path / "empty", [])) == (Timeline([]), None)
    timeline, problem = read_timeline(tmp_path)
    assert timeline == Timeline()
    assert problem is not None
