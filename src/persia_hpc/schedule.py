"""Which samples belong to which (step, trainer), and where the pipeline drains: a pure function.

Every rank computes the same schedule from configuration and dataset size, so a position in the data
is a step number, and nothing about it has to be sent. Data that grows (`data.follow`) comes in portions, each
with a schedule that goes on where the one before ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .config import Config


def split_evenly(begin: int, end: int, parts: int, part: int) -> tuple[int, int]:
    """The `part`-th of `parts` contiguous pieces of [begin, end), whose sizes differ by at most one."""
    size = end - begin
    return begin + size * part // parts, begin + size * (part + 1) // parts


@dataclass(frozen=True)
class Step:
    """One optimizer step: samples at positions [begin, end) of the epoch's order."""

    number: int  # counts from 1 over all epochs
    epoch: int  # counts from 0
    begin: int
    end: int

    @property
    def num_samples(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Schedule:
    """Steps of `batch_size` samples over `epochs` passes; the last step of an epoch may be smaller.

    No sample is lost or repeated in an epoch. `max_steps` cuts the whole training. `evaluate_every` adds
    drain points; 0 stands for the end of each epoch. So does `checkpoint_every`; 0 stands for none.

    `growing`: the steps of one portion, which counts as an epoch; others may follow. `steps_before` and
    `epochs_before` are those of the portions before it.
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
        return -(-self.num_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """The last step that is known of."""
        steps = self.steps_before + self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def may_grow(self) -> bool:
        """Whether steps beyond `num_steps` may follow."""
        return self.growing and (self.max_steps is None or self.num_steps < self.max_steps)

    def followed_by(self, num_samples: int) -> Schedule:
        """The schedule of the next portion, of so many samples."""
        if not self.num_samples:  # nothing came before
            return replace(self, num_samples=num_samples)
        steps = self.steps_before + self.steps_per_epoch
        return replace(
            self, num_samples=num_samples, steps_before=steps, epochs_before=self.epochs_before + 1
        )

    def step(self, number: int) -> Step:
        """Step `number` (1…num_steps, of a portion only its own); ValueError outside."""
        if not self.steps_before < number <= self.num_steps:
            raise ValueError(f"step {number} is outside of {self.steps_before + 1}…{self.num_steps}")
        epoch, index = divmod(number - self.steps_before - 1, self.steps_per_epoch)
        begin = index * self.batch_size
        end = min(begin + self.batch_size, self.num_samples)
        return Step(number, self.epochs_before + epoch, begin, end)

    def part(self, number: int, trainer_rank: int, num_trainers: int) -> tuple[int, int]:
        """Epoch positions [begin, end) of a trainer's batch; empty for some when the step is small."""
        step = self.step(number)
        return split_evenly(step.begin, step.end, num_trainers, trainer_rank)

    def next_drain(self, first: int) -> int:
        """The last step of the segment that starts with step `first`: after it no gradient is in flight."""
        periods = [self.evaluate_every, self.checkpoint_every]
        drains = [-(-first // every) * every for every in periods if every]
        if not self.evaluate_every and not self.growing:
            drains.append(-(-first // self.steps_per_epoch) * self.steps_per_epoch)
        return min([self.num_steps, *drains])

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is due after `step`."""
        if self.is_last(step):
            return True
        if self.evaluate_every:
            return step % self.evaluate_every == 0
        return (step - self.steps_before) % self.steps_per_epoch == 0

    def checkpoints_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`, which is not the last."""
        return self.checkpoint_every > 0 and step % self.checkpoint_every == 0 and not self.is_last(step)

    def is_last(self, step: int) -> bool:
        """Whether training ends with `step`, as far as the schedule knows."""
        return step >= self.num_steps and not self.may_grow


def worker_of(step: int, workers: tuple[int, ...]) -> int:
    """The worker (of a trainer's `workers`) that prepares the trainer's batch of `step`: they take turns."""
    return workers[(step - 1) % len(workers)]


def batches_of_worker(
    worker_rank: int, workers_of_trainer: Sequence[tuple[int, ...]], first: int, last: int
) -> list[tuple[int, int]]:
    """(step, trainer) of the batches of steps first…last that a worker prepares, in order."""
    return [
        (step, trainer)
        for step in range(first, last + 1)
        for trainer, workers in enumerate(workers_of_trainer)
        if worker_of(step, workers) == worker_rank
    ]


def make_schedules(config: Config, num_samples: Mapping[str, int]) -> dict[str, Schedule]:
    """The schedule of each split: as configured for training, one pass for the others.

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
