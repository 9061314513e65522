"""Hooks into a training run; importable without torch."""

from __future__ import annotations

from typing import Any


class Callback:
    """Override what you need. Called on trainer 0 only; `run.stop(reason)` is agreed on by all ranks.

    `run` has `step`, `model`, `session` and `stop(reason)`.
    """

    def on_start(self, run: Any) -> None:
        """The model is ready, no step done."""

    def on_step(self, run: Any) -> None:
        """After each step."""

    def on_evaluate(self, run: Any, metrics: dict[str, Any]) -> None:
        """After each evaluation; `metrics` has `split`, `auc`, `logloss`, `samples` and the custom ones."""

    def on_end(self, run: Any, summary: dict[str, Any]) -> None:
        """The run is over; `summary` is what summary.json holds."""
