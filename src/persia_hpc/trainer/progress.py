"""Declares what a session's user may read of the run's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from persia_hpc.schedule import Schedule, split_evenly

from .interfaces import Peers
from .run_state import RunState


class Progress:
    """Shows a run's state, read-only."""

    state: RunState
    peers: Peers

    @property
    def trainer_rank(self) -> int:
        """Returns this trainer's number."""
        return self.peers.rank

    @property
    def num_trainers(self) -> int:
        """Returns the number of trainers."""
        return self.peers.size

    @property
    def num_steps(self) -> int:
        """Returns the steps of the whole run; with `data.follow` those of the files found so far."""
        return self.schedules["train"].num_steps

    @property
    def steps_per_epoch(self) -> int:
        """Returns the steps of one epoch."""
        return self.schedules["train"].steps_per_epoch

    @property
    def full_batch(self) -> int:
        """Returns this trainer's samples in a step that isn't an epoch's tail; 0 if nothing is trained."""
        if (schedule := self.schedules.get("train")) is None:
            return 0
        size = schedule.batch_size if schedule.growing else min(schedule.batch_size, schedule.num_samples)
        begin, end = split_evenly(0, size, self.num_trainers, self.trainer_rank)
        return end - begin

    @property
    def skipped_steps(self) -> int:
        """Returns how many steps of the run were skipped because a loss or gradient wasn't finite."""
        return self.state.skipped_steps

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
