"""Decides which batches a worker prepares next, and reads their samples ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from persia_hpc.protocol.commands import Evaluate, Portion, Segment
from persia_hpc.samples.reader import PrefetchReader
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.schedule import batches_of_worker

# Read ahead: reading comes in bursts, a window at a time, and a queue as long as a burst hides it. What waits
# are views of windows.
SAMPLES_AHEAD, MOST_STEPS_AHEAD = 1 << 16, 128


@dataclass
class Stretch:
    """Holds the batches of one command of trainer 0 that have not been asked for."""

    command: Segment | Evaluate
    reader: PrefetchReader[tuple[int, int]]
    requests: deque[tuple[int, int]]  # (step or number, trainer), in order

    @property
    def evaluation(self) -> bool:
        """Returns whether this is an evaluation and not a segment."""
        return isinstance(self.command, Evaluate)

    @property
    def last(self) -> int:
        """Returns the number of the last batch."""
        return self.requests[-1][0]


class Stretches:
    """Turns segments and evaluations into batches of this worker, one stretch after another.

    Commands are kept until the stretch before is used up, since trainer 0 may be ahead of this worker.
    """

    def __init__(
        self,
        splits: SplitReaders,
        *,
        worker_rank: int,
        workers_of_trainer: Sequence[tuple[int, ...]],
        on_ready: Callable[[], None],
    ):
        """Starts without a stretch; `on_ready` is called by a reading thread when it has read a batch."""
        self._splits = splits
        self._worker_rank = worker_rank
        self._workers_of_trainer = workers_of_trainer
        trainers = {i for i, workers in enumerate(workers_of_trainer) if worker_rank in workers} | {0}
        self._num_trainers = len(trainers)
        self._on_ready = on_ready
        self._upcoming: deque[Segment | Evaluate] = deque()
        self.current: Stretch | None = None

    def begin_portion(self, portion: Portion) -> None:
        """Takes the files to train on next."""
        self._splits.begin_portion(portion.schedule, portion.files)

    def announce(self, command: Segment | Evaluate) -> None:
        """Adds a command; it begins with `begin_next`, when those before it are used up."""
        self._upcoming.append(command)

    def begin_next(self) -> Segment | Evaluate | None:
        """Ends a stretch whose batches are used up, and begins the next; returns what has begun, if any."""
        if self.current is not None and not self.current.requests:
            self.close()
        if self.current is not None or not self._upcoming:
            return None
        command = self._upcoming.popleft()
        if isinstance(command, Segment):
            split, first, last = "train", command.first, command.last
        else:
            split, first, last = command.split, 1, self._splits.schedules[command.split].num_steps
        requests = batches_of_worker(self._worker_rank, self._workers_of_trainer, first, last)
        self.current = Stretch(command, self._read(split, requests), deque(requests))
        return command

    def shorten(self, last: int) -> None:
        """Drops all steps after `last`, also of a segment that has not begun."""
        # An evaluation may have begun meanwhile, after a segment that has reached its end.
        if self.current is not None and not self.current.evaluation:
            while self.current.requests and self.current.last > last:
                self.current.requests.pop()
        self._upcoming = deque(
            replace(command, last=min(command.last, last)) if isinstance(command, Segment) else command
            for command in self._upcoming
        )

    def num_samples(self, step: int) -> int:
        """Returns the samples of a training step over all trainers."""
        return self._splits.schedules["train"].step(step).num_samples

    def close(self) -> None:
        """Ends the current stretch."""
        if self.current is not None:
            self.current.reader.close()
            self.current = None

    def _read(self, split: str, requests: Sequence[tuple[int, int]]) -> PrefetchReader[tuple[int, int]]:
        schedule, num_trainers = self._splits.schedules[split], len(self._workers_of_trainer)
        steps = min(max(2, SAMPLES_AHEAD // schedule.batch_size), MOST_STEPS_AHEAD)
        return PrefetchReader(
            self._splits.readers[split],
            (
                ((step, trainer), schedule.step(step).epoch, *schedule.part(step, trainer, num_trainers))
                for step, trainer in requests
            ),
            depth=steps * self._num_trainers,
            on_ready=self._on_ready,
        )
