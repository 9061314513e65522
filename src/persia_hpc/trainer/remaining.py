"""Says how long a run still takes: steps, evaluations and checkpoints, each at what it has cost so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persia_hpc.config import Config
from persia_hpc.schedule import Schedule

if TYPE_CHECKING:
    from .session import Session

# What a sample costs in an evaluation, as a share of what it costs in training, until there was one.
EVALUATION_SHARE = 0.3


@dataclass(frozen=True)
class Spent:
    """Holds what a run has done in this start and how long it took, in seconds."""

    samples_per_second: float  # of training, without what follows
    evaluated_samples: int
    evaluate_seconds: float
    checkpoints: int
    checkpoint_seconds: float  # for which training stood still

    @property
    def evaluation(self) -> float:
        """Returns the seconds of an evaluated sample."""
        if self.evaluated_samples:
            return self.evaluate_seconds / self.evaluated_samples
        return EVALUATION_SHARE / self.samples_per_second

    @property
    def checkpoint(self) -> float:
        """Returns the seconds of a checkpoint."""
        return self.checkpoint_seconds / self.checkpoints if self.checkpoints else 0.0


def left_seconds(
    config: Config, schedules: Mapping[str, Schedule], step: int, evaluated: int, spent: Spent
) -> float | None:
    """Returns the seconds until the schedule's last step and its evaluations are done.

    It is None as long as nothing is known. A run that stops early takes less, and with `data.follow` what is
    yet to come isn't counted.

    step: the last finished one. evaluated: the last one whose evaluation is done.
    """
    if not spent.samples_per_second > 0:
        return None
    schedule = schedules["train"]
    training = (schedule.samples_until(schedule.num_steps) - schedule.samples_until(step)) / (
        spent.samples_per_second
    )
    due = step > evaluated and step > 0 and schedule.evaluates_after(step)
    samples = 0
    if "valid" in schedules:
        samples += (schedule.evaluations_left(step) + due) * schedules["valid"].num_samples
    if "test" in schedules and config.train.evaluate_at_end:
        samples += schedules["test"].num_samples
    checkpoints = float(schedule.checkpoints_left(step)) + config.train.save
    if config.checkpoint.every_seconds > 0:
        checkpoints += training / config.checkpoint.every_seconds
    return training + samples * spent.evaluation + checkpoints * spent.checkpoint


class Outlook:
    """Follows what evaluations and waits cost, for the events of training."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._samples = 0  # evaluated
        self._waited: dict[str, float] = {}  # until the last event

    def evaluated(self, samples: int) -> None:
        """Counts an evaluation."""
        self._samples += samples

    def fields(self, session: Session, evaluated: int, seconds: float) -> dict[str, Any]:
        """Returns `left_seconds`, and as `waited` the shares of the last `seconds` by what was waited for.

        evaluated: the last step whose evaluation is done.
        """
        saved = session.saver.statistics() if session.saver is not None else {}
        spent = Spent(
            session.pace.steady()["samples_per_second"],
            self._samples,
            session.state.evaluate_seconds,
            saved.get("written", 0),
            saved.get("paused_seconds", 0.0),
        )
        before, self._waited = self._waited, session.wait_seconds()
        waited = {
            cause: min(1.0, max(0.0, until - before.get(cause, 0.0)) / max(seconds, 1e-9))
            for cause, until in self._waited.items()
        }
        left = left_seconds(self._config, session.schedules, session.step_number, evaluated, spent)
        return {"left_seconds": left, "waited": waited}
