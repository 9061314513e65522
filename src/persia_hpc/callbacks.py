"""Provides hooks into a training run; importable without torch."""

from __future__ import annotations

from typing import Any


class Callback:
    """Lets a user's code follow and stop a run: override the methods you need, which trainer 0 alone calls.

    `run` has `step`, `model`, `session` and `stop(reason)`; a stop is agreed on by all ranks.
    """

    def on_start(self, run: Any) -> None:
        """Is called when the model is ready, before the first step."""

    def on_step(self, run: Any) -> None:
        """Is called after each step."""

    def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
        """Is called after each evaluation.

        `metrics` has `split`, `auc`, `logloss`, `samples` and the custom metrics; one that isn't defined is
        None, and `undefined` says why.
        """

    def on_end(self, run: Any, summary: dict[str, Any]) -> None:
        """Is called when the run is over; `summary` is what summary.json holds."""
