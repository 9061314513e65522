"""Data that arrives while a run trains, in portions, and what a run of all of them gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import persia_hpc as ph
from tests.support.tiny import tiny_config, write_tiny

ROWS = {"a": 70, "b": 45, "c": 900, "d": 60}
FIRST, SECOND, THIRD = ("a", "b"), ("c",), ("d",)  # portions
STEPS = 4 + 29 + 2  # batches of 32


class Folder:
    """Data that arrives."""

    def __init__(self, path: Path):
        self.path = path
        self.incoming = path / "in"
        self.incoming.mkdir(parents=True)
        for seed, (name, rows) in enumerate(ROWS.items()):
            write_tiny(path / f"{name}.h5", rows, seed=seed)

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            (self.path / f"{name}.h5").rename(self.incoming / f"{name}.h5")

    def end(self) -> None:
        (self.incoming / "_END").touch()

    def config(self, **changes: Any) -> dict[str, Any]:
        return tiny_config(str(self.incoming / "*.h5"), **{"data.follow": True, **changes})


class Drops:
    """A logger that drops the next files when the run waits."""

    def __init__(self, folder: Folder, *portions: Sequence[str], then_end: bool = True):
        self.folder, self.portions, self.then_end = folder, list(portions), then_end
        self.events: list[dict[str, Any]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "wait":
            if self.portions:
                self.folder.drop(self.portions.pop(0))
            elif self.then_end:
                self.folder.end()


def summary_of(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return result


def train_left_alone(path: Path) -> Path:
    """The run directory of a run of all three portions in one process."""
    folder = Folder(path)
    folder.drop(FIRST)
    drops = Drops(folder, SECOND, THIRD)
    summary = ph.train(folder.config(run_dir=str(path / "run")), loggers=[drops], quiet=True)
    assert (summary["status"], summary["steps"], summary["samples"]) == ("completed", STEPS, 1075)
    assert summary["follow"]["portions"] == 3
    assert summary["follow"]["files"] == 4
    assert [e["files"] for e in drops.events if e["event"] == "data"] == [2, 1, 1]
    return path / "run"
