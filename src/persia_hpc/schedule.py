"""Says which samples belong to which (step, trainer), and where the pipeline drains: a pure function.

Every rank computes the same schedule from configuration and dataset size, so a position in the data
is a step number, and nothing about it has to be sent. Data that grows (`data.follow`) comes in portions, each
with a schedule that continues where the one before ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .config import Config


def split_evenly(begin: int, end: int, parts: int, part: int) -> tuple[int, int]:
    """Returns piece `part` of `parts` contiguous pieces of [begin, end); sizes differ by at most one."""
    size = end - begin
    return begin + size * part // parts, begin + size * (part + 1) // parts


@dataclass(frozen=True)
class Step:
    """Describes one optimizer step: the samples at positions [begin, end) of the epoch's order."""

    number: int  # counts from 1 over all epochs
    epoch: int  # counts from 0
    begin: int
    end: int

    @property
    def num_samples(self) -> int:
        """Returns the number of samples of the step, over all trainers."""
        return self.end - self.begin


@dataclass(frozen=True)
class Schedule:
    """Divides `epochs` passes over the data into steps of `batch_size` samples.

    The last step of an epoch may be smaller. No sample is lost or repeated in an epoch. `max_steps` cuts the
    whole training. The pipeline drains every `evaluate_every` steps (0: at the end of each epoch) and every
    `checkpoint_every` steps (0: never).

    `growing`: the steps are those of one portion, which counts as an epoch; others may follow. `steps_before`
    and `epochs_before` are those of the portions before it.
    """

    num_samples: int
    batch_size: int
    epochs: int = 1
    max_steps: int | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 0
    growing: bool = False
    steps_before: int = 0
    epochs_before: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of steps of an epoch."""
        return -(-self.num_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Returns the number of the last step that is known so far."""
        steps = self.steps_before + self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def may_grow(self) -> bool:
        """Returns whether steps beyond `num_steps` may follow."""
        return self.growing and (self.max_steps is None or self.num_steps < self.max_steps)

    def followed_by(self, num_samples: int) -> Schedule:
        """Returns the schedule of the next portion, which has `num_samples` samples."""
        if not self.num_samples:  # nothing came before
            return replace(self, num_samples=num_samples)
        steps = self.steps_before + self.steps_per_epoch
        return replace(
            self, num_samples=num_samples, steps_before=steps, epochs_before=self.epochs_before + 1
        )

    def step(self, number: int) -> Step:
        """Returns step `number`, counted from 1; the schedule of a portion has only the portion's own steps.

        Raises ValueError for any other number.
        """
        if not self.steps_before < number <= self.num_steps:
            raise ValueError(f"step {number} is outside of {self.steps_before + 1}…{self.num_steps}")
        epoch, index = divmod(number - self.steps_before - 1, self.steps_per_epoch)
        begin = index * self.batch_size
        end = min(begin + self.batch_size, self.num_samples)
        return Step(number, self.epochs_before + epoch, begin, end)

    def part(self, number: int, trainer_rank: int, num_trainers: int) -> tuple[int, int]:
        """Returns the epoch positions [begin, end) of a trainer's batch; it may be empty in a small step."""
        step = self.step(number)
        return split_evenly(step.begin, step.end, num_trainers, trainer_rank)

    def next_drain(self, first: int) -> int:
        """Returns the next step, `first` or later, after which the pipeline drains: no gradient pending."""
        periods = [self.evaluate_every, self.checkpoint_every]
        drains = [-(-first // every) * every for every in periods if every]
        if not self.evaluate_every and not self.growing:
            drains.append(-(-first // self.steps_per_epoch) * self.steps_per_epoch)
        return min([self.num_steps, *drains])

    def evaluates_after(self, step: int) -> bool:
        """Returns whether an evaluation is due after `step`."""
        if self.is_last(step):
            return True
        if self.evaluate_every:
            return step % self.evaluate_every == 0
        return (step - self.steps_before) % self.steps_per_epoch == 0

    def evaluations_left(self, step: int) -> int:
        """Returns how many evaluations are due after later steps than `step`."""
        every = self.evaluate_every or self.steps_per_epoch or 1
        begin = 0 if self.evaluate_every else self.steps_before
        last = self.num_steps
        extra = last > step and self.is_last(last) and (last - begin) % every != 0
        return max(0, (last - begin) // every - (step - begin) // every) + extra

    def checkpoints_left(self, step: int) -> int:
        """Returns how many checkpoints are due after later steps than `step`; the last step's isn't one."""
        if not self.checkpoint_every:
            return 0
        last = self.num_steps - self.is_last(self.num_steps)
        return max(0, last // self.checkpoint_every - step // self.checkpoint_every)

    def samples_until(self, step: int) -> int:
        """Returns the samples of this schedule's own steps up to `step`, without those of portions before."""
        passes, index = divmod(max(0, step - self.steps_before), self.steps_per_epoch or 1)
        return passes * self.num_samples + min(index * self.batch_size, self.num_samples)

    def checkpoints_after(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step`; False for the last step."""
        return self.checkpoint_every > 0 and step % self.checkpoint_every == 0 and not self.is_last(step)

    def is_last(self, step: int) -> bool:
        """Returns whether training ends with `step`, as far as the schedule knows."""
        return step >= self.num_steps and not self.may_grow


def worker_of(step: int, workers: tuple[int, ...]) -> int:
    """Returns the worker that prepares a trainer's batch of `step`: its `workers` take turns."""
    return workers[(step - 1) % len(workers)]


def batches_of_worker(
    worker_rank: int, workers_of_trainer: Sequence[tuple[int, ...]], first: int, last: int
) -> list[tuple[int, int]]:
    """Returns (step, trainer) of each batch of steps first…last that a worker prepares, in order."""
    return [
        (step, trainer)
        for step in range(first, last + 1)
        for trainer, workers in enumerate(workers_of_trainer)
        if worker_of(step, workers) == worker_rank
    ]


def make_schedules(config: Config, num_samples: Mapping[str, int]) -> dict[str, Schedule]:
    """Returns the schedule of each split: as configured for training, one pass for the others.

    With `data.follow` the training data has no samples yet, or those of its first portion.
    """
    data, train = config.data, config.train
    schedules = {}
    for split, count in num_samples.items():
        if split == "train":
            schedules[split] = Schedule(
                count,
                data.batch_size,
                train.epochs,
                train.max_steps,
                train.evaluate_every,
                config.checkpoint.every,
                growing=data.follow,
            )
        else:
            schedules[split] = Schedule(count, data.evaluate_batch_size)
    return schedules
