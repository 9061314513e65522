"""Counts skipped steps, says what was wrong with them, and ends a run that has too many in a row."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.config import Config
from persia_hpc.errors import PersiaError
from persia_hpc.printable import say
from persia_hpc.protocol.row_batch import RowBatch

from .batch import Inputs
from .dense.verdict import Verdict
from .interfaces import Peers
from .run_state import RunState
from .suspects import suspects

LOG = logging.getLogger("persia_hpc")
HUGE_LOSS = 1e9  # the mean of a batch; no loss that anybody minimises is as large
BLAMED = 2  # so many trainers' batches are described
SMALL = 1 << 16  # elements; buffers of floats up to this are copied in every step
SAID = 5  # so many skipped steps of a run are told on the screen


class Skips:
    """Counts the steps that a trainer has skipped, together with the others or, in `async`, on its own."""

    def __init__(
        self, config: Config, inputs: Inputs, state: RunState, peers: Peers, last_good: Callable[[], str]
    ) -> None:
        """Starts without any; last_good: names the newest checkpoint, "" if there is none."""
        self._tell: Callable[[dict[str, Any]], None] = lambda _: None  # takes events
        self._most = config.train.max_skipped
        self._alone = config.mode == "async" and peers.size > 1
        self._inputs = inputs
        self._state = state
        if self._alone and peers.rank:  # a checkpoint has the sum
            state.skipped_steps = 0
        self._peers = peers
        self._last_good = last_good
        self._warned = False
        self._constant: frozenset[str] = frozenset()  # what isn't finite in the model, and may stay so

    def tell_to(self, log: Callable[[dict[str, Any]], None]) -> None:
        """Hands events to `log` from now on."""
        self._tell = log

    def count(self, verdict: Verdict, row_batch: RowBatch) -> None:
        """Takes note of a step's last verdict, whose batch is still there.

        Collective over the trainers of a step that isn't good.
        Raises PersiaError, on all of them, after too many skipped steps in a row.
        """
        state, step = self._state, row_batch.step
        state.last_skipped = not verdict.good
        if verdict.good:
            state.skipped_in_row = 0
            self._look_at(verdict.loss, row_batch)
            return
        state.skipped_steps += 1
        state.skipped_in_row += not verdict.overflowed
        why = str(verdict)
        if not verdict.overflowed:  # else the cause isn't in the data
            why += self._blame(verdict, row_batch)
        text = f"step {step} was skipped: {why}"
        if self._peers.rank == 0 or self._alone:
            LOG.info("%s", text)
            self._tell({"event": "skip", "step": step, "skipped_steps": state.skipped_steps, "why": why})
            if not verdict.overflowed and state.skipped_steps <= SAID:
                say(text)
        if state.skipped_in_row > self._most:
            raise PersiaError(
                f"{state.skipped_in_row} skipped in a row, more than train.max_skipped = {self._most}: "
                f"{text}. {self._way_out(alone=self._alone)}"
            )

    def total(self) -> int:
        """Returns, on trainer 0, the skipped steps of all trainers, which in `async` skip each its own.

        Collective over trainers.
        """
        counts = self._peers.gather_objects(self._state.skipped_steps) if self._alone else None
        return self._state.skipped_steps if counts is None else sum(counts)

    def _blame(self, verdict: Verdict, row_batch: RowBatch) -> str:
        """Returns whose batch has which values, from all trainers."""
        text, loss = "", verdict.loss
        if loss is not None and (not math.isfinite(loss) or not verdict.bad_losses):
            text = f"trainer {self._peers.rank}: loss {loss:.4g}, {suspects(row_batch, self._inputs)}"
        texts = [text]
        if not self._alone:
            texts = self._peers.broadcast(self._peers.gather_objects(text))
        return "".join(f". Largest values at {t}" for t in [t for t in texts if t][:BLAMED])

    def _look_at(self, loss: float | None, row_batch: RowBatch) -> None:
        """Warns, once, of a loss that is finite but absurd."""
        if loss is None or self._warned or abs(loss) < HUGE_LOSS:
            return
        self._warned = True
        text = (
            f"step {row_batch.step}: the loss is {loss:.4g}. Largest values at trainer {self._peers.rank}: "
            f"{suspects(row_batch, self._inputs)}"
        )
        self.warn(row_batch.step, text)

    def warn(self, step: int, text: str) -> None:
        """Says something on the screen, and as an event."""
        LOG.info("%s", text)
        self._tell({"event": "warning", "step": step, "text": text})
        say(text)

    def begin(self, model: nn.Module) -> None:
        """Takes note of what isn't finite in a model before training, as a causal mask."""
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._constant = frozenset(_not_finite(model)) - trained

    def check_model(self, model: nn.Module) -> None:
        """Checks that a model can be saved: that training has left its parameters and buffers finite.

        Collective over trainers.
        Raises PersiaError, on all of them, if the model of one isn't: buffers are each trainer's own.
        """
        bad = next((name for name in _not_finite(model) if name not in self._constant), "")
        names = self._peers.broadcast(self._peers.gather_objects(bad))
        if not any(names):
            return
        ranks = [rank for rank, name in enumerate(names) if name]
        where = "" if len(ranks) == len(names) else f" on trainer {ranks[0]}"
        raise PersiaError(
            f"{names[ranks[0]]} of the dense model has NaN or infinity{where} after step {self._state.step}: "
            f"training has diverged, and the model isn't saved. {self._way_out(alone=False)}"
        )

    def _way_out(self, *, alone: bool) -> str:
        # Trainer 0 waits until the one that is being written is whole; the others may not end the job before.
        # Alone, in `async`, trainer 0 may be steps away: a checkpoint that it writes just then is lost.
        good = self._last_good() if alone else self._peers.broadcast(self._last_good())
        where = f"Last good checkpoint: {good}" if good else "There is no checkpoint yet"
        return f"{where}. Mend the data or the loss, or lower the learning rate"


def _not_finite(model: nn.Module) -> Iterator[str]:
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            yield name


class Buffers:
    """Keeps a model's buffers as they were before a batch: a forward may put NaN into running statistics."""

    def __init__(self, model: nn.Module | None = None, *, always: bool = False) -> None:
        """Takes a model's buffers. always: they may change unseen, as in a CUDA graph."""
        self._always = always
        self._buffers = [] if model is None else list(model.buffers())
        self._kept = [b.detach().clone() for b in self._buffers]
        self._versions = [b._version for b in self._buffers]

    def keep(self) -> None:
        """Copies them, but large ones only if they were changed since the last call."""
        for number, buffer in enumerate(self._buffers):
            # BatchNorm changes its statistics without a new version.
            unseen = self._always or (buffer.is_floating_point() and buffer.numel() <= SMALL)
            if unseen or buffer._version != self._versions[number]:
                self._kept[number].copy_(buffer)
                self._versions[number] = buffer._version

    def restore(self) -> None:
        """Makes them what they were at the last call of `keep`."""
        with torch.no_grad():
            for number, buffer in enumerate(self._buffers):
                buffer.copy_(self._kept[number])
                self._versions[number] = buffer._version
