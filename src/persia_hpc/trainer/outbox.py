"""Sends row gradients to the worker: when that keeps the device busy, but before anything waits for them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from persia_hpc.protocol.row_batch import RowBatch

from .interfaces import BatchStream
from .pooling.gradients import RowGradients


@dataclass(frozen=True)
class _Unsent:
    row_batch: RowBatch
    gradients: RowGradients
    good: bool  # else NaNs are sent, which servers skip and count


class Outbox:
    """Holds the row gradients of the last step until they are sent; each step's are sent once, in order.

    On a CPU that is at once. A GPU's are still on their way to the host when the step ends, and to write them
    into a ring takes the host as long as a small step. So they wait until the next step's backward has been
    launched, if its batch has arrived. Otherwise they are sent before anything is waited for: the batch may
    need them (in `sync` it always does), or an evaluation or a checkpoint may follow. The servers' bound on
    staleness counts what has been applied, so it holds whenever gradients come. Where this trainer's next
    batch was answered without them, so can be the other trainers' of that step: none waits for these.
    """

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self._stream = stream
        self._waits = device.type == "cuda"  # where what was launched goes on by itself
        self._unsent: _Unsent | None = None

    def put(self, row_batch: RowBatch, gradients: RowGradients, *, good: bool) -> None:
        """Takes the gradients of a step that was judged; nothing of the batch itself is read after this."""
        assert self._unsent is None, "the gradients of the step before were not sent"
        self._unsent = _Unsent(row_batch, gradients, good)
        if not self._waits:
            self.send()

    def settle(self, next_step: int) -> None:
        """Gives the batch's memory back, and sends what is there unless the next step's batch has arrived.

        Must be called when all of a step has been launched.
        """
        if self._unsent is None:
            return
        self._unsent.gradients.let_go()
        self._unsent.row_batch.release()
        if self._stream.peek(next_step) is None:
            self.send()

    def send(self) -> None:
        """Sends what is there; must be called before other trainers or another batch are waited for."""
        unsent, self._unsent = self._unsent, None
        if unsent is None:
            return
        begin = time.perf_counter()
        arrays = unsent.gradients.arrays() if unsent.good else unsent.gradients.poison()
        self._stream.phases.add("push", begin, unsent.row_batch.step)
        self._stream.push(unsent.row_batch, arrays)
