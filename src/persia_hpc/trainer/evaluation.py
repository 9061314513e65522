"""What all trainers have predicted of a split, and its metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persia_hpc.feed import FeedBatch
from persia_hpc.metrics import Metric, evaluate_metrics

from .feeding import Array, Peers, concatenate


class Predictions:
    """Logits [n, L] of this trainer's samples, with what metrics need of them."""

    def __init__(self, width: int) -> None:
        """`width`: L, the number of labels."""
        self._width = width
        self._columns: dict[str, list[Array]] = {"logits": [], "labels": [], "weight": [], "group": []}

    def add(self, logits: Array, feed: FeedBatch) -> None:
        """One batch's; what is kept of it is copied."""
        self._columns["logits"].append(logits)
        self._columns["labels"].append(np.array(feed.labels))
        if feed.weight is not None:
            self._columns["weight"].append(np.array(feed.weight)[:, None])
        if feed.group is not None:
            self._columns["group"].append(np.array(feed.group)[:, None])

    def metrics(self, peers: Peers, labels: Sequence[str], custom: dict[str, Metric]) -> dict[str, float]:
        """Over the samples of all trainers, on each of them. Collective."""
        columns = self._columns
        logits = peers.gather(concatenate(columns["logits"], self._width))
        expected = peers.gather(concatenate(columns["labels"], self._width))
        weight = peers.gather(concatenate(columns["weight"], 1))
        group = peers.gather(concatenate(columns["group"], 1, np.int64))
        metrics: dict[str, float] = {}
        if logits is not None and expected is not None:
            metrics = evaluate_metrics(
                logits,
                expected,
                weight[:, 0] if weight is not None and len(weight) else None,
                group[:, 0] if group is not None and len(group) else None,
                labels,
                custom,
            )
        agreed: dict[str, float] = peers.broadcast(metrics)
        return agreed
