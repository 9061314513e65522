"""Follows a metric through the evaluations: which one was the best, and how many have come since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persia_hpc.config.watching import Watched

from .metrics import Metrics


class Watch:
    """Knows the best evaluation so far by one metric. One that doesn't define the metric isn't counted."""

    def __init__(self, watched: Watched, min_delta: float = 0.0) -> None:
        """Takes what to watch, and by how much an evaluation must be better to count as such."""
        self.watched = watched
        self.min_delta = min_delta
        self.best: float | None = None
        self.step = 0  # of the best
        self.bad = 0  # evaluations since then that were not better

    def update(self, metrics: Metrics, step: int) -> bool | None:
        """Takes an evaluation; returns whether it is the best so far, None if its metric isn't defined."""
        value = metrics.get(self.watched.metric)
        if value is None:
            return None
        if not self.watched.better(value, self.best, self.min_delta):
            self.bad += 1
            return False
        self.best, self.step, self.bad = value, step, 0
        return True

    def count_anew(self) -> None:
        """Forgets how many evaluations have not been better; the best stays."""
        self.bad = 0

    def state(self) -> dict[str, Any]:
        """Returns what `restore` takes, as plain values for a checkpoint."""
        return {
            "metric": self.watched.metric,
            "mode": self.watched.mode,
            "value": self.best,
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any] | None, bad: int = 0) -> None:
        """Continues after an earlier run, or anew if that one watched another metric or none."""
        if state is not None and Watched(state["metric"], state["mode"]) == self.watched:
            self.best, self.step, self.bad = state["value"], state["step"], bad
        else:
            self.best, self.step, self.bad = None, 0, 0


class Plateau:
    """Multiplies all learning rates, also those of tables, when evaluations stop getting better."""

    def __init__(self, options: Mapping[str, Any], metrics: Sequence[str] = ()) -> None:
        """Takes the options of `train.plateau`; metrics: those that are asked for."""
        self.factor = 1.0
        self._watch = Watch(Watched.of(options, metrics), float(options["min_delta"]))
        self._patience = int(options["patience"])
        self._step = float(options["factor"])

    def update(self, metrics: Metrics, step: int) -> bool | None:
        """Takes an evaluation; returns what `Watch.update` does, and lowers `factor` if it is time."""
        better = self._watch.update(metrics, step)
        if better is False and self._watch.bad >= self._patience:
            self.factor *= self._step
            self._watch.count_anew()
        return better

    def state(self) -> dict[str, Any]:
        """Returns what `restore` takes, as plain values for a checkpoint."""
        return {**self._watch.state(), "bad": self._watch.bad, "factor": self.factor}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continues after an earlier run; the rates stay as low as they were, whatever is watched now."""
        self._watch.restore(state, 0 if state is None else state["bad"])
        self.factor = 1.0 if state is None else state["factor"]
