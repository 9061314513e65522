"""Declares what a session needs from the rest of the job.

Rings implement it under MPI, plain calls in a run of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.phases import Phases
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.schedule import Schedule
from persia_hpc.serving.requests import ExportReport, ExportRequest


class BatchStream(Protocol):
    """Gives a trainer its batches and takes its row gradients.

    Every trainer makes the same calls in the same order.
    """

    wait_seconds: float
    phases: Phases  # of the whole trainer; the stream's own are what its calls take
    alone: bool  # there are no other ranks, and between two steps nothing is in flight

    @property
    def memory(self) -> Sequence[Array]:
        """Returns the arrays in which its batches lie; () if they can be anywhere."""

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        """Announces, on trainer 0 only, the files to train on next, with the steps of `schedule`."""

    def begin_segment(self, first: int, last: int, rate_factor: float) -> None:
        """Announces that steps first…last follow, with the tables' learning rates times `rate_factor`."""

    def early(self, step: int) -> RowBatch | None:
        """Waits, in `fresh`, for the batch of `step`, of which rows may still change until `next_batch`.

        Returns None in all other modes, at once, and if the segment ends before this step. A step whose batch
        it has returned is trained.
        """

    def next_batch(self, step: int) -> RowBatch | None:
        """Waits for the batch of `step`; returns None if all ranks agreed to end the segment before it."""

    def peek(self, step: int) -> RowBatch | None:
        """Returns the batch that `next_batch` will return if it has arrived, else None; doesn't wait."""

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        """Sends the row gradients of a batch and gives the batch back.

        Shapes: one [U_g, D_g] array a group, in the wire dtype.
        """

    def end_segment(self) -> None:
        """Ends a segment after its last batch: returns when a stop that was asked for has been agreed on."""

    def request_stop(self) -> None:
        """Asks, on trainer 0 only, all ranks to end the segment early."""

    def stop_signal(self) -> int | None:
        """Returns, on trainer 0 only, the signal to stop that a rank of the job has received, or None."""

    def begin_evaluation(self, split: str, step: int) -> None:
        """Announces batches of a split, with rows that have all updates through `step`."""

    def next_evaluation(self, number: int) -> RowBatch:
        """Waits for evaluation batch `number` (from 1), which must be given back by `release`."""

    def begin_checkpoint(self, directory: str, step: int, base_step: int) -> None:
        """Starts a checkpoint, on trainer 0 only: returns when every server has marked its rows as of `step`.

        The servers have then begun to write them into `directory`: all rows, or with a `base_step` other than
        0 only the changes since that step.
        """

    def checkpoint_written(self) -> bool:
        """Returns, on trainer 0 only, whether all servers have written the checkpoint."""

    def wait_for_checkpoint(self, give_up: Callable[[], bool]) -> None:
        """Waits, on trainer 0 only, until all servers have written the checkpoint or `give_up()` is True."""

    def restore(self, directory: str, step: int) -> None:
        """Replaces all rows, on trainer 0 only, by those of a checkpoint of this run; waits for that.

        step: after which they are replaced; no gradient may be in flight.
        """

    def begin_export(self, request: ExportRequest) -> None:
        """Asks, on trainer 0 only, for a version or a base for a service.

        A version is of the rows after `request.step`, which no trainer should have finished: a server that
        has updates of later steps when it hears of that reports that it is too late. One that is asked for
        again, before its step, is of another step instead.
        """

    def exported(self) -> list[ExportReport]:
        """Returns, on trainer 0 only, what servers have reported of requests since the last call."""

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        """Waits until `done` returns True, which may take long; serves rings and watchdog meanwhile.

        what: what it waits for; None when no other rank is expected to act.
        """

    def close(self) -> None:
        """Ends the run for workers and servers."""


class Peers(Protocol):
    """Connects a trainer with the other trainers."""

    rank: int
    size: int

    def broadcast(self, value: Any) -> Any:
        """Returns trainer 0's value on every trainer.

        Collective over trainers.
        """

    def gather_objects(self, value: Any) -> list[Any] | None:
        """Returns all trainers' values on trainer 0, None elsewhere.

        Collective over trainers.
        """

    def wait(self) -> AbstractContextManager[None]:
        """Returns a context in which this trainer waits for the others; the watchdog says so if it lasts."""

    def meet(self) -> Callable[[], bool]:
        """Returns a function that says whether all trainers have called `meet`; doesn't wait.

        Collective over trainers.
        """

    def gather(self, array: Array) -> Array | None:
        """Concatenates the trainers' arrays along their first axis, on trainer 0; returns None elsewhere.

        Shapes: [n_i, …] of trainer i; the other axes are the same on all.
        Collective over trainers.
        """


class DenseSync(Protocol):
    """Keeps the dense parameters of all trainers together: by AllReduce, or by shared memory without it."""

    seconds: float  # spent in it so far
    parameters: list[nn.Parameter]  # those that are trained
    told: nn.Parameter  # its gradient [2] is summed with theirs: what trainers tell each other of a step

    @property
    def one_sided(self) -> bool:
        """Returns whether others read and write this trainer's memory while it computes."""

    def attach(self, model: nn.Module) -> None:
        """Takes the model's parameters and gives every trainer trainer 0's.

        Collective over trainers.
        """

    def broadcast(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Overwrites `tensors` with trainer 0's.

        Collective over trainers.
        """

    def begin(self) -> None:
        """Says that this step's gradients come now, from one backward; without samples there is none."""

    def reduce(self) -> None:
        """Turns every gradient into the one that the optimizer takes; a missing one becomes zeros.

        Collective over trainers, except where `one_sided`.
        """

    def updates_with(self, num_samples: int) -> bool:
        """Returns whether a trainer with `num_samples` in a step updates the dense parameters."""

    def updated(self) -> None:
        """Shares what a step of the optimizer has changed."""

    def settle(self, stream: BatchStream, listen: Callable[[], None]) -> None:
        """Waits until all trainers have the same parameters; calls `listen` meanwhile.

        Collective over trainers.
        """

    def close(self) -> None:
        """Frees what it holds.

        Collective over trainers.
        """


class NoPeers:
    """Stands for the other trainers of a single one. See `Peers`."""

    rank = 0
    size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def gather_objects(self, value: Any) -> list[Any] | None:
        return [value]

    def wait(self) -> AbstractContextManager[None]:
        return nullcontext()

    def meet(self) -> Callable[[], bool]:
        return lambda: True

    def gather(self, array: Array) -> Array | None:
        return array


def concatenate(arrays: Sequence[Array], width: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Concatenates arrays along their first axis.

    Shapes: [n_i, width] each; [0, width] of `dtype` is returned when there is none.
    """
    return np.concatenate(arrays) if arrays else np.empty((0, width), dtype)
