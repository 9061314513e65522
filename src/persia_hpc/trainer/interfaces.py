"""What a session needs from the rest of the job, whatever carries it: rings under MPI, plain calls in one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.runtime.phases import Phases
from persia_hpc.samples.datafile import FileInfo
from persia_hpc.schedule import Schedule

Array = npt.NDArray[Any]


class BatchStream(Protocol):
    """Where batches come from and row gradients go. Every trainer makes the same calls in the same order."""

    wait_seconds: float
    phases: Phases  # of the whole trainer; the stream's own are what its calls take

    @property
    def memory(self) -> Sequence[Array]:
        """In which its batches lie; () if they can be anywhere."""

    def begin_portion(self, schedule: Schedule, files: Sequence[FileInfo]) -> None:
        """Trainer 0 only: these files are what is trained on next, with the steps of `schedule`."""

    def begin_segment(self, first: int, last: int) -> None:
        """Steps first…last follow."""

    def next_batch(self, step: int) -> RowBatch | None:
        """The batch of `step`, or None when the segment ends before it (a stop that all ranks agreed on)."""

    def peek(self, step: int) -> RowBatch | None:
        """The batch that `next_batch` will return, if it is here already; doesn't wait."""

    def push(self, batch: RowBatch, gradients: list[Array]) -> None:
        """Row gradients of a batch, one [U_g, D_g] array a group in wire dtype; gives the batch back."""

    def end_segment(self) -> None:
        """After the last batch of a segment: returns when a stop that was asked for has been agreed on."""

    def request_stop(self) -> None:
        """Trainer 0 only: asks all ranks to end the segment early."""

    def stop_signal(self) -> int | None:
        """Trainer 0 only: the signal that some rank of the job has got and that asks it to stop."""

    def begin_evaluation(self, split: str, step: int) -> None:
        """Batches of a split follow, with rows that have all updates through `step`."""

    def next_evaluation(self, number: int) -> RowBatch:
        """Evaluation batch `number` (from 1); to be given back by `release`."""

    def begin_checkpoint(self, directory: str, step: int, base_step: int) -> None:
        """Trainer 0 only: returns when every server has marked its rows, as of `step`, and begun to write
        them into `directory`; with a `base_step` other than 0 only the changes since.
        """

    def checkpoint_written(self) -> bool:
        """Trainer 0 only: whether all servers are done with that."""

    def wait_for_checkpoint(self, give_up: Callable[[], bool]) -> None:
        """Trainer 0 only: returns when they are, or `give_up` says so."""

    def wait_until(self, done: Callable[[], bool], what: str | None) -> None:
        """Returns when `done` says so, which may take long; rings and watchdog are looked after meanwhile.

        what: what it waits for; None if nobody owes it and there is nothing to say.
        """

    def close(self) -> None:
        """Ends the run for workers and servers."""


class Peers(Protocol):
    """The other trainers."""

    rank: int
    size: int

    def broadcast(self, value: Any) -> Any:
        """Trainer 0's value, on every trainer. Collective."""

    def gather_objects(self, value: Any) -> list[Any] | None:
        """All trainers' values on trainer 0, None elsewhere. Collective."""

    def meet(self) -> Callable[[], bool]:
        """What says whether all trainers have called this; doesn't wait. Collective."""

    def gather(self, array: Array) -> Array | None:
        """The trainers' [n_i, …] arrays one after the other on trainer 0, None elsewhere. Collective."""


class DenseSync(Protocol):
    """How the dense parameters of all trainers stay together: AllReduce, or shared memory without it."""

    seconds: float  # spent in it so far
    parameters: list[nn.Parameter]  # those that are trained

    @property
    def one_sided(self) -> bool:
        """Returns whether others read and write this trainer's memory while it computes."""

    def attach(self, model: nn.Module) -> None:
        """Takes the model's parameters and gives every trainer trainer 0's. Collective."""

    def broadcast(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Overwrites `tensors` with trainer 0's. Collective."""

    def reduce(self) -> None:
        """Makes every gradient what the optimizer takes; a missing one becomes zeros. Collective."""

    def updates_with(self, num_samples: int) -> bool:
        """Returns whether a trainer with `num_samples` in a step updates the dense parameters."""

    def updated(self) -> None:
        """Shares what a step of the optimizer has changed."""

    def settle(self, stream: BatchStream, listen: Callable[[], None]) -> None:
        """Returns once all trainers have the same parameters; calls `listen` meanwhile. Collective."""

    def close(self) -> None:
        """Frees what it holds. Collective."""


class NoPeers:
    """The peers of a single trainer."""

    rank = 0
    size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def gather_objects(self, value: Any) -> list[Any] | None:
        return [value]

    def meet(self) -> Callable[[], bool]:
        return lambda: True

    def gather(self, array: Array) -> Array | None:
        return array


def concatenate(arrays: Sequence[Array], width: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """[n_i, width] arrays one after the other, [0, width] of `dtype` when there is none."""
    return np.concatenate(arrays) if arrays else np.empty((0, width), dtype)
