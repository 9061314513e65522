"""Reads what a run directory holds for a report: whatever is damaged there, the rest is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from persia_hpc.checkpoint.listing import list_run
from persia_hpc.config import Config, load_config
from persia_hpc.config.learning_rate import LearningRate
from persia_hpc.config.watching import RESERVED
from persia_hpc.errors import PersiaError, UserError

from .run_files import EVENTS, number, read_object
from .telemetry_series import TelemetrySeries
from .timelines import CHART_POINTS, Points, read_timeline

MOST_CHECKPOINTS = 50  # that are looked into, the newest


class RunRecord:
    """Holds a run as its files tell it."""

    def __init__(self, directory: Path):
        """Reads the files.

        Raises UserError if this is no run directory.
        """
        if not os.path.exists(directory / "config.toml"):
            raise UserError(f"{directory} is not a run directory: it has no config.toml")
        self.directory = directory
        self.summary, bad_summary = read_object(directory / "summary.json")
        self.failure, bad_failure = read_object(directory / "failure.json")
        self.timeline, bad_events = read_timeline(directory / EVENTS)
        self.telemetry = TelemetrySeries(directory)
        self.checkpoints, bad_checkpoints = _checkpoints(directory)
        self.config, bad_config = _config(directory)
        found = (bad_summary, bad_failure, bad_events, bad_checkpoints, bad_config)
        self.problems = [problem for problem in found if problem is not None]

    @property
    def state(self) -> str:
        """Returns how the run ended, or that it hasn't."""
        if self.failure:
            return "failed"
        if self.summary:
            return str(self.summary.get("status"))
        return "not ended, or killed"

    def part(self, *names: str) -> Mapping[str, Any]:
        """Returns an object inside of the summary, {} if it isn't there."""
        value: Any = self.summary
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    def number(self, name: str) -> float | None:
        """Returns a number of the summary by its dotted name, None if it isn't there."""
        *parts, last = name.split(".")
        return number(dict(self.part(*parts)), last)

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Yields every value of the summary with its dotted name, in its order."""
        stack: list[tuple[str, Any]] = [("", self.summary)]
        while stack:
            name, value = stack.pop()
            if isinstance(value, Mapping):
                prefix = f"{name}." if name else ""
                stack += [(f"{prefix}{key}", each) for key, each in reversed(list(value.items()))]
            else:
                yield name, value

    def phases(self, role: str) -> dict[str, tuple[float, float]]:
        """Returns seconds of a role by phase, as (mean, max) over its ranks; without `total`."""
        found = {}
        for phase in self.part("phase_seconds", role):
            mean = self.number(f"phase_seconds.{role}.{phase}.mean")
            largest = self.number(f"phase_seconds.{role}.{phase}.max")
            if phase != "total" and mean is not None and largest is not None:
                found[phase] = (mean, largest)
        return found

    def histogram(self) -> dict[int, float]:
        """Returns the number of pulls by the staleness of their answer."""
        found = {}
        for text in self.part("staleness", "histogram"):
            count = self.number(f"staleness.histogram.{text}")
            if text.isdecimal() and len(text) < 10 and count is not None and count >= 0:
                found[int(text)] = count
        return found

    def metrics(self) -> list[tuple[str, str]]:
        """Returns splits and metrics of which the events tell more than nothing, in their order."""
        found: dict[tuple[str, str], None] = {}
        for event in self.timeline.kinds("evaluate"):
            for name in event:
                if name not in RESERVED and number(event, name) is not None:
                    found[str(event.get("split")), name] = None
        return list(found)

    def learning_rates(self) -> dict[str, Points]:
        """Returns the learning rate over the steps of the dense network and of the tables.

        Tables that have the same one share a line. A plateau's factor counts from its evaluation on.
        """
        if self.config is None or (num_steps := self._num_steps()) is None:
            return {}
        factors = [(0.0, 1.0), *self.timeline.series("evaluate", "rate_factor")]
        grid = {1 + round(i * (num_steps - 1) / (CHART_POINTS - 1)) for i in range(CHART_POINTS)}
        steps = sorted(grid | {int(s) + after for s, _ in factors for after in (0, 1) if 0 < s < num_steps})
        dense = self.config.train.optimizer.get("lr")
        each = {"dense network": (dense, self.config.train.schedule)}
        for name, table in self.config.tables.items():
            each[f"table {name}"] = (table.optimizer.get("lr"), table.schedule)
        lines: dict[tuple[tuple[float, float], ...], str] = {}
        for name, (lr, schedule) in each.items():
            if isinstance(lr, int | float):
                rate = LearningRate(schedule, num_steps)
                points = tuple((float(s), lr * rate.factor(s) * _factor(factors, s)) for s in steps)
                lines[points] = f"{lines[points]}, {name}" if points in lines else name
        return {name: list(points) for points, name in lines.items()}

    def _num_steps(self) -> int | None:
        """Returns the steps that were planned, else those that were done."""
        planned = [number(event, "num_steps") for event in self.timeline.kinds("train")[-1:]]
        steps = next((n for n in [*planned, self.number("steps")] if n is not None), None)
        return None if steps is None or not 1 <= steps < 2**53 else int(steps)


def _factor(factors: Points, step: int) -> float:
    """Returns the last factor that was set before a step."""
    return next(factor for at, factor in reversed(factors) if at < step)


def _config(directory: Path) -> tuple[Config | None, str | None]:
    try:
        return load_config(directory / "config.toml"), None
    except PersiaError as error:
        return None, str(error)


def _checkpoints(directory: Path) -> tuple[Mapping[str, Any], str | None]:
    try:
        return list_run(directory, MOST_CHECKPOINTS), None
    except OSError as error:
        return {}, f"checkpoints of {directory} can't be listed ({error.strerror})"
