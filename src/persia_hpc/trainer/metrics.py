"""Computes exact metrics over all evaluated samples; a metric that isn't defined is None, with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import Any, cast

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.config.types import METRICS
from persia_hpc.errors import UserError
from persia_hpc.user_objects import describe, load_object

Metric = Callable[[Array, Array, "Array | None", "Array | None"], "float | None"]
# What an evaluation returns: `samples`, each metric by its name; `missing_labels`, in how many samples each
# label is missing; `undefined`, the reason for each metric that is None. The last two are left out if empty.
Metrics = dict[str, Any]


class UndefinedError(ValueError):
    """Is raised for a metric that isn't defined for these samples; its text says why."""


class MetricError(UserError):
    """Is raised, on every trainer, for a metric of the user's own that fails; what was trained is whole."""


def auc(scores: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the area under the ROC curve, ties counted half.

    Equals the probability that a positive has a higher score than a negative (Hanley & McNeil 1982), computed
    from one sort.

    Shapes: scores [n], labels [n], weight [n] or None.
    Raises UndefinedError unless there are labels of 0 and of 1, no others, and finite scores.
    """
    _check_defined(scores, labels, weight)
    order = np.argsort(scores, kind="stable")
    scores, labels = scores[order], labels[order].astype(np.float64)
    w = np.ones(len(labels)) if weight is None else weight[order].astype(np.float64)
    positive, negative = w * labels, w * (1.0 - labels)
    for total, value in ((positive.sum(), 0), (negative.sum(), 1)):
        if total == 0:
            raise UndefinedError(f"all labels {'' if weight is None else 'with a weight '}are {value}")
    # Equal scores form one block: a positive beats all negatives of earlier blocks and half of its own.
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    block_positive = np.add.reduceat(positive, starts)
    block_negative = np.add.reduceat(negative, starts)
    below = np.cumsum(block_negative) - block_negative
    return float((block_positive * (below + block_negative / 2)).sum() / (positive.sum() * negative.sum()))


def logloss(logits: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the mean binary cross-entropy in nats, weighted if `weight` is given.

    Shapes: logits [n], labels [n], weight [n] or None.
    Raises UndefinedError unless all labels are 0 or 1, and all logits are finite.
    """
    _check_defined(logits, labels, weight)
    x, y = logits.astype(np.float64), labels.astype(np.float64)
    # log(1 + e^x) - x y, without overflow
    losses = np.logaddexp(0.0, x) - x * y
    return float(np.average(losses, weights=weight))


def _check_defined(logits: Array, labels: Array, weight: Array | None) -> None:
    if not len(labels):
        raise UndefinedError("no sample has a label")
    others = labels[(labels != 0) & (labels != 1)]
    if len(others):
        raise UndefinedError(
            f"{len(others)} of {len(labels)} labels are neither 0 nor 1, such as {others[0]:g}; "
            "a missing label is NaN"
        )
    if weight is not None and not weight.any():
        raise UndefinedError("all weights are 0")
    bad = len(logits) - int(np.isfinite(logits).sum())
    if bad:
        raise UndefinedError(f"the model's output isn't finite for {bad} of {len(logits)} samples")


def known_auc(scores: Array, labels: Array) -> float | None:
    """Returns the AUC over the samples whose label is known (not NaN), None if it isn't defined.

    Shapes: scores, labels [n].
    """
    known = ~np.isnan(labels)
    try:
        return auc(scores[known], labels[known])
    except UndefinedError:
        return None


def evaluate_metrics(
    logits: Array,
    labels: Array,
    weight: Array | None,
    group: Array | None,
    label_names: Sequence[str],
    custom: dict[str, Metric],
) -> Metrics:
    """Computes `samples`, `auc` and `logloss`, and the custom metrics.

    Those of a label are computed over the samples where it is known (not NaN). With several labels `auc` and
    `logloss` are means over them, and those of each label are given too. A mean over some of the labels could
    be compared with no other, so it isn't defined unless that of each label is.

    Shapes: logits, labels [n, L]; weight, group [n] or None.
    Raises MetricError for a custom metric that returns no number, or raises an exception although there are
    samples that it can be computed from.
    """
    result: Metrics = {"samples": len(labels)}
    undefined: dict[str, str] = {}
    missing: dict[str, int] = {}

    def add(name: str, compute: Callable[..., float], *arguments: Any) -> None:
        try:
            result[name] = compute(*arguments)
        except UndefinedError as error:
            result[name], undefined[name] = None, str(error)

    several = len(label_names) > 1
    if several:
        result |= dict.fromkeys(METRICS)  # their place is before those of the labels
    for i, label in enumerate(label_names):
        known = ~np.isnan(labels[:, i])
        mine = (logits[known, i], labels[known, i], None if weight is None else weight[known])
        for name, function in (("auc", auc), ("logloss", logloss)):
            add(f"{name}_{label}" if several else name, function, *mine)
        if not known.all():
            missing[label] = len(labels) - int(known.sum())
    if several:
        for name in METRICS:
            add(name, _mean, result, [f"{name}_{label}" for label in label_names])
    for name, metric in custom.items():
        add(name, _call, name, metric, logits, labels, weight, group)
    facts = {"missing_labels": missing, "undefined": undefined}
    return result | {name: found for name, found in facts.items() if found}


def _mean(metrics: Metrics, names: Sequence[str]) -> float:
    missing = [name for name in names if metrics[name] is None]
    if missing:
        raise UndefinedError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} undefined")
    return float(np.mean([metrics[name] for name in names]))


def _call(name: str, metric: Metric, logits: Array, labels: Array, weight: Array | None, *more: Any) -> float:
    try:
        value = metric(logits, labels, weight, *more)
    except UndefinedError:  # of a function of this module that it calls
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        # NumPy and scikit-learn have no other words for what isn't defined, so the samples decide what it is.
        if isinstance(error, ArithmeticError | ValueError) and _lack_something(logits, labels, weight):
            raise UndefinedError(describe(error)) from error
        raise MetricError(
            f"train.metrics: {name} failed on {len(labels)} samples: {describe(error)}; a metric returns a "
            "number, or None where it isn't defined"
        ) from error
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        shown = shorten(repr(value), 60, placeholder="...")
        raise MetricError(
            f"train.metrics: {name} returned {shown}, expected a number, or None where it isn't defined"
        ) from None
    if not math.isfinite(number):
        raise UndefinedError(f"the function returned {value}")
    return number


def _lack_something(logits: Array, labels: Array, weight: Array | None) -> bool:
    """Says whether the outputs aren't finite, or a label has less than two values where it counts."""
    counts = ~np.isnan(labels) if weight is None else ~np.isnan(labels) & (weight > 0)[:, None]
    few = any(len(np.unique(column[mine])) < 2 for column, mine in zip(labels.T, counts.T, strict=True))
    return few or not np.isfinite(logits).all()


def load_metrics(paths: Sequence[str]) -> dict[str, Metric]:
    """Returns the user's metrics, given as `module:function`, by the function's name.

    Each is called as f(logits, labels, weight, group) -> float or None. Missing labels are NaN.

    Shapes: logits, labels [n, L]; weight, group [n] or None.
    Raises UserError for a function that can't be imported.
    """
    return {
        path.partition(":")[2]: cast(Metric, load_object(path, "train.metrics"))
        for path in paths
        if path not in METRICS
    }
