"""Numbers have one name wherever they are shown; what ranks write reaches loggers once, and whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from persia_hpc.reporting.scalars import Scalar, TelemetryFollower, scalars

TRAIN = {"event": "train", "step": 3, "loss": 0.5, "auc": None, "samples": 30}


def line(step: int) -> bytes:
    event = {"event": "telemetry", "role": "trainer", "rank": 1, "time": 5.0, "step": step, "rss_bytes": 9}
    return json.dumps(event).encode() + b"\n"


def test_numbers_that_are_defined_have_group_and_name() -> None:
    assert list(scalars(TRAIN)) == [Scalar("train", {}, "loss", 0.5), Scalar("train", {}, "samples", 30.0)]
    evaluate = {
        "event": "evaluate",
        "split": "valid",
        "step": 3,
        "samples": 10,
        "auc": 0.7,
        "recall@10": float("nan"),
        "slices": {"country": {"7": {"auc": 0.1}}},
        "undefined": {"recall@10": "why"},
    }
    assert list(scalars(evaluate)) == [Scalar("valid", {"split": "valid"}, "auc", 0.7)]
    labels = {"role": "trainer", "rank": "1"}
    assert list(scalars(json.loads(line(4)))) == [Scalar("trainer/1", labels, "rss_bytes", 9.0)]
    assert not list(scalars({"event": "warning", "step": 3, "text": "x"}))


class Kept:
    """Keeps the events that it is given."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def steps(self) -> list[int]:
        return [event["step"] for event in self.events if event["event"] == "telemetry"]


def test_lines_arrive_once_whole_and_only_those_of_this_start(tmp_path: Path) -> None:
    folder = tmp_path / "telemetry"
    folder.mkdir()
    file = folder / "trainer-1.jsonl"
    file.write_bytes(line(1))
    kept = Kept()
    follower = TelemetryFollower([kept], tmp_path)
    follower.log(TRAIN)
    assert kept.steps() == []
    with file.open("ab") as out:
        out.write(line(2) + line(3)[:20])
    follower.log({"event": "warning", "step": 3, "text": "nothing is read for it"})
    assert kept.steps() == []
    follower.log(TRAIN)
    assert kept.steps() == [2]
    with file.open("ab") as out:
        out.write(line(3)[20:] + b"damaged\n" + b'{"event": "other"}\n' + line(4))
    (folder / "trainer-2.jsonl").write_bytes(line(5))
    follower.log(TRAIN)
    follower.log({"event": "end", "status": "completed", "steps": 3})
    assert kept.steps() == [2, 3, 4, 5]
    assert [event["event"] for event in kept.events if event["event"] != "telemetry"] == [
        *("train", "warning", "train", "train", "end")
    ]


def test_without_a_folder_events_pass(tmp_path: Path) -> None:
    kept = Kept()
    TelemetryFollower([kept], tmp_path).log(TRAIN)
    assert kept.events == [TRAIN]
