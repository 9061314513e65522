"""Gives the numbers of a run's events their names, the same ones wherever they are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from persia_hpc.config.watching import RESERVED
from persia_hpc.runtime.telemetry import EVENT, FOLDER

from .events import MetricLogger
from .run_files import number, read_event

_PLACES = ("event", "role", "rank", "split", "step", "time")  # that say where a number belongs


class Scalar(NamedTuple):
    """Is one number of an event."""

    group: str  # "train", "progressive", the name of a split, or role and rank: "parameter_server/0"
    labels: Mapping[str, str]  # what of the group there is: split, or role and rank
    name: str
    value: float


def scalars(event: Mapping[str, Any]) -> Iterator[Scalar]:
    """Yields the numbers of a training, evaluation, progressive or telemetry event; of others none.

    Numbers that aren't defined are left out, and so are those of slices.
    """
    kind = event["event"]
    labels: dict[str, str] = {}
    if kind == "evaluate":
        labels = {"split": str(event["split"])}
    elif kind == EVENT:
        labels = {"role": str(event["role"]), "rank": str(event["rank"])}
    elif kind not in ("train", "progressive"):
        return
    group = "/".join(labels.values()) or kind
    for name in event:
        value = number(event, name)
        if value is not None and name not in _PLACES and (kind != "evaluate" or name not in RESERVED):
            yield Scalar(group, labels, name, value)


class TelemetryFollower:
    """Hands events on to loggers, and with them what all ranks have written into their files since then."""

    def __init__(self, loggers: Sequence[MetricLogger], run_dir: Path):
        """Passes over what an earlier start of the run has written."""
        self._loggers = loggers
        self._folder = run_dir / FOLDER
        self._read = {path: path.stat().st_size for path in self._folder.glob("*.jsonl")}

    def log(self, event: dict[str, Any]) -> None:
        """Takes an event. See `MetricLogger`."""
        telemetry = list(self._news()) if event["event"] in ("train", "end") else []
        for each in (*telemetry, event):
            for logger in self._loggers:
                logger.log(each)

    def _news(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self._folder.glob("*.jsonl")):
            begin = self._read.get(path, 0)
            try:
                with path.open("rb") as file:
                    file.seek(begin)
                    lines, newline, _ = file.read().rpartition(b"\n")
            except OSError:  # a network file system that doesn't answer now may do so at the next event
                continue
            self._read[path] = begin + len(lines) + len(newline)
            for line in lines.splitlines():
                if (event := read_event(line)) is not None and event["event"] == EVENT:
                    yield event
