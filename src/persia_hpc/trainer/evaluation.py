"""Predicts a split with all trainers, and computes its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch

from .batch import Batch
from .interfaces import BatchStream, Peers, concatenate
from .metrics import MetricError, Metrics, Wanted, evaluate_metrics
from .pooling.embed import Pooling
from .ranking import ItemVectors
from .run_state import RunState


def predict_split(
    model: nn.Module,
    split: str,
    forward: Callable[[Batch], Tensor],
    *,
    state: RunState,
    stream: BatchStream,
    peers: Peers,
    pooling: Pooling,
    poll: Callable[[], None],
) -> Iterator[tuple[Array, RowBatch]]:
    """Yields (logits, batch) of this trainer's part of a split, in order; no gradient may be in flight.

    poll: is called after each batch.

    Shapes: logits [B, L] float32.
    Collective over trainers.
    """
    begin = time.perf_counter()
    was_training = model.training
    model.eval()
    stream.begin_evaluation(split, state.step)
    try:
        for number in range(1, state.schedules[split].num_steps + 1):
            row_batch = stream.next_evaluation(number)
            poll()
            if row_batch.num_samples:
                with torch.no_grad():
                    batch, gradients = pooling.embed(row_batch, training=False)
                    logits = forward(batch)
                gradients.wait()
                state.evaluate_seconds += time.perf_counter() - begin
                yield logits.cpu().numpy().reshape(row_batch.num_samples, -1), row_batch
                begin = time.perf_counter()
            row_batch.release()
        # What trainer 0 commands next must not overtake batches that another trainer still waits for.
        peers.gather(np.empty(0, np.float32))
        peers.broadcast(None)
    finally:
        model.train(was_training)
        state.evaluate_seconds += time.perf_counter() - begin


class Predictions:
    """Collects the logits of this trainer's samples, with what metrics need of them."""

    def __init__(self, wanted: Wanted, items: ItemVectors | None = None) -> None:
        """Starts without samples. items: are ranked for samples, whose queries come behind their logits."""
        self._wanted = wanted
        self._items = items
        names = ("logits", "labels", "weight", "group", "slices", "ranks")
        self._columns: dict[str, list[Array]] = {name: [] for name in names}

    def add(
        self,
        logits: Array,
        labels: Array,
        weight: Array | None,
        group: Array | None,
        slices: Array | None = None,
    ) -> None:
        """Adds the samples of one batch.

        Shapes: logits, labels [B, L] float32; weight [B]; group [B] int64; slices [S, B] uint64.
        """
        self._columns["logits"].append(logits)
        self._columns["labels"].append(labels)
        for name, column in (("weight", weight), ("group", group)):
            if column is not None:
                self._columns[name].append(column[:, None])
        if slices is not None:
            self._columns["slices"].append(slices.T)

    def add_batch(self, logits: Array, batch: RowBatch) -> None:
        """Adds one batch, copying what is kept of it.

        Shapes: logits [B, L] float32; [B, L + W] if items are ranked.
        """
        if self._items is not None:
            assert batch.slices is not None
            logits, queries = np.split(logits, [self._wanted.num_outputs], axis=1)
            excluded, offsets = batch.excluded, batch.excluded_offsets
            ranks = self._items.ranks(np.ascontiguousarray(queries), batch.slices[-1], excluded, offsets)
            self._columns["ranks"].append(ranks)
        sliced = len(self._wanted.slices)
        slices = batch.slices[:sliced] if batch.slices is not None and sliced else None
        columns = (batch.labels, batch.weight, batch.group, slices)
        self.add(logits, *(None if column is None else np.array(column) for column in columns))  # type: ignore[arg-type]

    def metrics(self, peers: Peers, state: RunState, name: str) -> Metrics:
        """Returns, on every trainer, the metrics over the samples of all trainers.

        state: gets the seconds and, under `name`, what is found of any samples.

        Collective over trainers.
        Raises MetricError, on every trainer, for a custom metric that fails.
        """
        begin = time.perf_counter()
        columns, wanted = self._columns, self._wanted
        sliced = len(wanted.slices)
        logits = peers.gather(concatenate(columns["logits"], wanted.num_outputs))
        expected = peers.gather(concatenate(columns["labels"], len(wanted.labels)))
        weight = peers.gather(concatenate(columns["weight"], 1))
        group = peers.gather(concatenate(columns["group"], 1, np.int64))
        slices = peers.gather(concatenate(columns["slices"], sliced, np.uint64)) if sliced else None
        ranks = None if self._items is None else peers.gather(concatenate(columns["ranks"], 2, np.int64))
        found: Metrics | MetricError = {}
        if logits is not None and expected is not None:
            weights = weight[:, 0] if weight is not None and len(weight) else None
            groups = group[:, 0] if group is not None and len(group) else None
            ids = slices if slices is not None and len(slices) else None
            try:
                found = evaluate_metrics(logits, expected, weights, groups, wanted, ids, ranks)
            except MetricError as error:
                found = error
        agreed: Metrics | MetricError = peers.broadcast(found)
        state.evaluate_seconds += time.perf_counter() - begin
        if isinstance(agreed, MetricError):
            raise agreed
        if agreed["samples"]:
            state.results[name] = agreed
        return agreed
