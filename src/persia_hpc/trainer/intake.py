"""Takes in a trainer's batches, and lets a model compute what needs no rows before these are final (`fresh`).

B samples, K dense features.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from persia_hpc.config import Config
from persia_hpc.config.retrieval import retrieval_loss
from persia_hpc.protocol.row_batch import RowBatch

from .batch import Batch, Made
from .dense.precision import Precision
from .interfaces import BatchStream
from .pooling.embed import Pooling
from .pooling.gradients import RowGradients


def has_ahead(model: nn.Module) -> bool:
    """Returns whether the model has an `ahead` that its `forward` knows of.

    A class that inherits `ahead` but has a `forward` of its own may compute the same once more, so it must
    define both.
    """
    for kind in type(model).__mro__:
        if "ahead" in vars(kind):
            return "forward" not in vars(model)
        if "forward" in vars(kind):
            return False
    return False


class Intake:
    """Makes training batches of what a stream gives, and calls the model's `ahead` for each of them.

    It does so in all modes, once, before the batch is given out: so a model that draws random numbers draws
    them in one order in each mode. It isn't called for a batch that is cut into parts, whose forwards have a
    backward each, nor where the whole forward is one compiled or captured graph, nor where a loss calls
    another method than `forward`.
    """

    def __init__(self, config: Config, stream: BatchStream, pooling: Pooling, precision: Precision) -> None:
        self._config, self._stream = config, stream
        self._pooling, self._precision = pooling, precision
        self._model: nn.Module | None = None
        self._calls_ahead = False
        self.ahead_seconds = 0.0  # spent in the model's `ahead` so far

    def attach(self, model: nn.Module) -> None:
        """Takes the model that will be trained."""
        train = self._config.train
        whole = train.accumulate == 1 and not train.compile and not train.cuda_graphs
        self._model = model
        self._calls_ahead = whole and retrieval_loss(self._config) is None and has_ahead(model)

    def take(self, step: int) -> tuple[RowBatch, Batch, RowGradients, float] | None:
        """Waits for a step's batch; returns it as it came, for the model, its gradients, and the time.

        Returns None if all ranks agreed to end the segment before this step.
        """
        phases, dense, made = self._stream.phases, None, None
        early = self._stream.early(step) if self._calls_ahead else None
        if early is not None and early.num_samples:
            begin = time.perf_counter()
            dense = self._pooling.dense(early)
            made = self._make(dense)
            phases.add("forward", begin, step)
        row_batch = self._stream.next_batch(step)
        if row_batch is None:
            return None
        begin = time.perf_counter()
        pooled = self._precision.pooled_dtype(self._model)
        batch, gradients = self._pooling.embed(row_batch, training=True, pooled=pooled, dense=dense)
        end = phases.add("pool", begin, step)
        if self._calls_ahead and batch.num_samples:
            batch.made = self._make(batch.dense) if dense is None else made
        return row_batch, batch, gradients, end

    def _make(self, dense: Tensor) -> Made | None:
        model: Any = self._model
        begin = time.perf_counter()
        with self._precision.autocast(), torch.enable_grad():
            value = model.ahead(dense)
            made = None if value is None else Made(model, dense, value)
        self.ahead_seconds += time.perf_counter() - begin
        return made
