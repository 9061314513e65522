"""Declares what a session's user may read of the run's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from persia_hpc.schedule import Schedule

from .run_state import RunState


class Progress:
    """Shows a run's state, read-only."""

    state: RunState

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """Returns the schedule of each split."""
        return self.state.schedules

    @property
    def step_number(self) -> int:
        """Returns the last finished step."""
        return self.state.step

    @property
    def samples(self) -> int:
        """Returns how many samples all trainers have trained on."""
        return self.state.samples

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Returns the last metrics of each split."""
        return self.state.results

    @property
    def stop_reason(self) -> str | None:
        """Returns why the run ends early; None if it does not."""
        return self.state.stop_reason

    @property
    def interrupted(self) -> int | None:
        """Returns the signal that ended the run early."""
        return self.state.interrupted

    @property
    def loss(self) -> Tensor:
        """Returns the mean loss of this trainer's last batch, on the device where it was computed."""
        return self.state.loss

    @property
    def last_staleness(self) -> int:
        """Returns the number of steps whose updates this trainer's last batch missed."""
        return self.state.last_staleness

    @property
    def last_loss(self) -> float:
        """Returns the loss as a number."""
        return float(self.loss)  # waits for the device
