"""Computes exact metrics over all evaluated samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.config.types import METRICS
from persia_hpc.user_objects import load_object

Metric = Callable[[Array, Array, "Array | None", "Array | None"], float]


def auc(scores: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the area under the ROC curve, ties counted half.

    NaN when one of the classes is missing or a score is not finite. Equals the probability that a positive
    has a higher score than a negative (Hanley & McNeil 1982), computed from one sort.

    Shapes: scores [n], labels [n] in {0, 1}, weight [n] or None.
    """
    if not np.isfinite(scores).all():
        return math.nan
    order = np.argsort(scores, kind="stable")
    scores, labels = scores[order], labels[order].astype(np.float64)
    w = np.ones(len(labels)) if weight is None else weight[order].astype(np.float64)
    positive, negative = w * labels, w * (1.0 - labels)
    total = positive.sum() * negative.sum()
    if total == 0:
        return math.nan
    # Equal scores form one block: a positive beats all negatives of earlier blocks and half of its own.
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    block_positive = np.add.reduceat(positive, starts)
    block_negative = np.add.reduceat(negative, starts)
    below = np.cumsum(block_negative) - block_negative
    return float((block_positive * (below + block_negative / 2)).sum() / total)


def logloss(logits: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the mean binary cross-entropy in nats, weighted if `weight` is given.

    Shapes: logits [n], labels [n], weight [n] or None.
    """
    x, y = logits.astype(np.float64), labels.astype(np.float64)
    # log(1 + e^x) - x y, without overflow
    losses = np.logaddexp(0.0, x) - x * y
    return float(np.average(losses, weights=weight))


def evaluate_metrics(
    logits: Array,
    labels: Array,
    weight: Array | None,
    group: Array | None,
    label_names: Sequence[str],
    custom: dict[str, Metric],
) -> dict[str, float]:
    """Computes `samples`, `auc` and `logloss`, and the custom metrics.

    With several labels `auc` and `logloss` are means over them, and those of each label are given too.

    Shapes: logits, labels [n, L]; weight, group [n] or None.
    """
    result: dict[str, float] = {"samples": len(labels)}
    if len(labels):
        each_auc = [auc(logits[:, i], labels[:, i], weight) for i in range(labels.shape[1])]
        each_loss = [logloss(logits[:, i], labels[:, i], weight) for i in range(labels.shape[1])]
        result["auc"], result["logloss"] = float(np.mean(each_auc)), float(np.mean(each_loss))
        if len(label_names) > 1:
            for name, one_auc, one_loss in zip(label_names, each_auc, each_loss, strict=True):
                result[f"auc_{name}"], result[f"logloss_{name}"] = one_auc, one_loss
    for name, metric in custom.items():
        result[name] = float(metric(logits, labels, weight, group))
    return result


def load_metrics(paths: Sequence[str]) -> dict[str, Metric]:
    """Returns the user's metrics, given as `module:function`, by the function's name.

    Each is called as f(logits, labels, weight, group) -> float.

    Shapes: logits, labels [n, L]; weight, group [n] or None.
    Raises UserError for a function that can't be imported.
    """
    return {
        path.partition(":")[2]: cast(Metric, load_object(path, "train.metrics"))
        for path in paths
        if path not in METRICS
    }
