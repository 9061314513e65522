"""Scores training batches before they are learned: metrics of the last of them (progressive validation)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import torch
from torch import Tensor

from persia_hpc.protocol.row_batch import RowBatch

from .batch import Batch
from .evaluation import Predictions
from .interfaces import Peers
from .metrics import Metrics, Wanted
from .run_state import RunState

# What metrics need of one batch, on its device: logits, labels, weight and group.
_Scored = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Progressive:
    """Keeps the logits of the last training steps, as `Session.forward` gives them: before the step's update.

    They are those of the training forward, with what it alone does, such as dropout. The window are the last
    steps that have `size` samples together, over all trainers; it begins anew when a run is resumed. Steps
    that are skipped have no part in it.
    """

    def __init__(self, size: int, wanted: Wanted, peers: Peers, state: RunState) -> None:
        """size: samples of the window; 0 keeps nothing. state: gets what is found, as of a split."""
        self._size = size
        self._wanted = replace(wanted, slices=())  # training batches don't bring their ids
        self._peers = peers
        self._state = state
        self._scored: _Scored | None = None  # of the part under way
        self._parts: list[_Scored] = []  # of the step under way
        self._steps: deque[tuple[int, list[_Scored]]] = deque()  # samples of all trainers; this one's
        self._samples = 0

    def score(self, batch: Batch, logits: Tensor) -> Tensor:
        """Takes note of a batch's logits, if they are to be learned from, and returns them.

        Shapes: logits [B, L] float32.
        """
        if self._size and torch.is_grad_enabled():
            weight, group = (None if c is None else c.clone() for c in (batch.weight, batch.group))
            # Copies: a loop of the user's own may change its tensors.
            flat = logits.detach().reshape(batch.num_samples, -1)
            self._scored = (flat.clone(), batch.labels.clone(), weight, group)  # a loop may ask again
        return logits

    def finish_part(self) -> None:
        """Ends a part of a step, a whole one without `train.accumulate`: what it scored last counts."""
        if self._scored is not None:
            self._parts.append(self._scored)
            self._scored = None

    def finish_step(self, batch: RowBatch, *, good: bool) -> None:
        """Puts the scored batch into the window if its step was `good`, and drops what is too old."""
        scored, self._parts = self._parts, []
        if not self._size or not good:
            return
        self._steps.append((batch.num_global, scored))
        self._samples += batch.num_global
        while self._samples - self._steps[0][0] >= self._size:
            self._samples -= self._steps.popleft()[0]

    def metrics(self) -> Metrics:
        """Returns, on every trainer, the metrics over the window of all trainers; {} if that is empty.

        Collective over trainers; between two batches only.
        Raises MetricError, on every trainer, for a custom metric that fails.
        """
        predictions = Predictions(self._wanted)
        for logits, labels, weight, group in (scored for _, parts in self._steps for scored in parts):
            others = (None if c is None else c.cpu().numpy() for c in (weight, group))
            predictions.add(logits.cpu().numpy(), labels.cpu().numpy(), *others)
        found = predictions.metrics(self._peers, self._state, "progressive")
        return found if found["samples"] else {}
