"""Holds what is true of a training at this moment: what its parts read, and what a checkpoint keeps of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from persia_hpc.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class DriverState:
    """Holds what a resumed run must know of the standard loop."""

    evaluated: int = -1  # the last evaluated step
    best: float = 0.0  # of the early stop's metric, its negative where smaller is better
    bad: int = 0  # evaluations since then that count
    metric: str = ""  # the early stop's; "" without one, and in checkpoints of older versions
    mode: str = ""  # "max" or "min"
    best_evaluation: dict[str, Any] | None = None  # see `Watch.state`
    plateau: dict[str, Any] | None = None  # see `Plateau.state`


@dataclasses.dataclass
class RunState:
    """Holds how far the run is, what it found and why it ends. The parts of one trainer share it."""

    schedules: Mapping[str, Schedule]
    step: int = 0  # the last finished one
    samples: int = 0
    first_step: int = 0  # where this start of the run began
    first_samples: int = 0
    results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # of each split, the last;
    # and of "progressive"
    driver: DriverState | None = None
    stop_reason: str | None = None
    interrupted: int | None = None  # the signal that ended the run early
    evaluate_seconds: float = 0.0
    compile_seconds: float = 0.0  # of the first forward, with `train.compile`
    skipped_steps: int = 0  # of the whole run; in `async` this trainer's, and trainer 0's have those before
    rate_factor: float = 1.0  # of all learning rates, beside their schedules
    last_skipped: bool = False  # the last step was
    skipped_in_row: int = 0  # the last ones, but for those that searched for a loss scale
    segment_last: int | None = None  # the last step of the segment that is under way
    loss: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))  # mean of the last batch
    restored_step: int | None = None  # of the best evaluation, whose rows and weights are there now
    last_staleness: int = 0  # steps whose updates the last batch missed

    @property
    def in_segment(self) -> bool:
        """Returns whether steps of a segment are still to come."""
        return self.segment_last not in (None, self.step)

    def finish_step(self, step: int, num_samples: int) -> None:
        """Counts a finished step and the samples that all trainers had in it."""
        self.step = step
        self.samples += num_samples

    def follow(self, schedule: Schedule) -> None:
        """Replaces the training schedule by one that has grown."""
        self.schedules = {**self.schedules, "train": schedule}

    def saved_driver(self) -> dict[str, Any]:
        """Returns the driver's state as a checkpoint holds it; {} for a loop of the user's own."""
        return {} if self.driver is None else dataclasses.asdict(self.driver)
