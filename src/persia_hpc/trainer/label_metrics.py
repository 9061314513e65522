"""Computes the built-in metrics of one label from its logits; those of a ranking natively, from one sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from persia_hpc._native import rank_metrics
from persia_hpc.arrays import Array
from persia_hpc.config.metric_names import GAUC, TOP, is_grouped, top_of

_NOT_BINARY = ("mse", "poisson", "softmax")  # losses
_SAMPLES_OF_A_THREAD = 100_000
_IN_CACHE = 1 << 14
_GAUC = dict(zip(GAUC, ("gauc", "gauc_of_groups", "gauc_by_positives"), strict=True))


class UndefinedError(ValueError):
    """Is raised for a metric that isn't defined for these samples; its text says why."""


class LabelMetrics:
    """Computes metrics of one label over samples where it is known, by name; sorts them once for all.

    With weights, a sample of weight 2 counts as two. Within the first K of a group only a weight of 0 counts:
    such a sample is nowhere.
    """

    def __init__(
        self,
        logits: Array,
        labels: Array,
        weight: Array | None = None,
        groups: Array | None = None,
        names: Sequence[str] = (),
        loss: str = "bce",
    ) -> None:
        """Takes the samples; names: of the metrics that will be asked for, where they need groups.

        loss: of the label, which says what it is: a class, a number, else 0 or 1.

        Shapes: logits [n], or [n, K] of K classes; labels [n]; weight [n] or None; groups uint32 [n], numbers
        from 0, or None.
        """
        self.logits, self.labels, self.weight, self.loss = logits, labels, weight, loss
        self.grouped = groups if any(map(is_grouped, names)) else None
        self.ks = sorted({top[1] for name in names if (top := top_of(name)) is not None})

    def value(self, name: str) -> float:
        """Returns a metric.

        Raises UndefinedError where it isn't defined: without labels of 0 and 1 only, without finite logits,
        and for want of a class, of a weight or of a group.
        """
        if self._problem is not None:
            raise self._problem
        of_all: dict[str, Callable[[], float]] = {
            "auc": self._auc,
            "pr_auc": self._pr_auc,
            "logloss": lambda: self._logloss,
            "ne": self._ne,
            "rmse": lambda: math.sqrt(self._mean(lambda x, y: self._errors(x, y) ** 2)),
            "mae": lambda: self._mean(lambda x, y: np.abs(self._errors(x, y))),
            "accuracy": self._accuracy,
            "calibration": self._calibration,
        }
        return of_all[name]() if name in of_all else self._of_groups(name)

    def skipped_groups(self, name: str) -> int:
        """Returns how many groups a metric leaves out, because it isn't defined for them."""
        if not is_grouped(name):
            return 0
        return int(self.ranks["num_without_positive" if top_of(name) else "num_one_class"])

    @cached_property
    def _problem(self) -> UndefinedError | None:
        try:
            _check_defined(self.logits, self.labels, self.weight, binary=self.loss not in _NOT_BINARY)
        except UndefinedError as error:
            return error
        return None

    @cached_property
    def ranks(self) -> dict[str, Any]:
        """Returns what `rank_metrics` finds: from one sort by score, and with groups one by them."""
        return rank_metrics(
            _as_float32(self.logits),
            np.ascontiguousarray(self.labels, np.float32),
            None if self.weight is None else np.ascontiguousarray(self.weight, np.float64),
            self.grouped,
            ks=self.ks,
            threads=min(torch.get_num_threads(), 1 + len(self.labels) // _SAMPLES_OF_A_THREAD),
        )

    def _need(self, *values: int) -> None:
        """Checks that there are labels of these values."""
        for total, value in ((self.ranks["positives"], 1), (self.ranks["negatives"], 0)):
            if total == 0 and value in values:
                word = "" if self.weight is None else "with a weight "
                needs = "" if value else ", it needs negatives"
                raise UndefinedError(f"all labels {word}are {1 - value}{needs}")

    def _auc(self) -> float:
        self._need(0, 1)
        return float(self.ranks["auc"])

    def _pr_auc(self) -> float:
        self._need(1)
        return float(self.ranks["average_precision"])

    @cached_property
    def _logloss(self) -> float:
        return self._mean(_cross_entropy_of_classes if self.logits.ndim == 2 else _binary_cross_entropy)

    def _mean(self, values: Callable[[Array, Array], Array]) -> float:
        """Returns the weighted mean of what `values` makes of logits and labels."""
        count = len(self.labels) if self.weight is None else float(self.weight.sum(dtype=np.float64))
        return self._sum(values) / count

    def _errors(self, x: Array, y: Array) -> Array:
        """Returns what is predicted, less the labels."""
        if self.loss == "poisson":
            x = np.exp(x)
        elif self.loss != "mse":
            x = _probabilities(x)
        errors: Array = x - y
        return errors

    def _accuracy(self) -> float:
        """Returns the share of samples whose most probable value is the label."""
        return self._mean(lambda x, y: ((x.argmax(axis=1) if x.ndim == 2 else x > 0) == y).astype(np.float64))

    def _sum(self, values: Callable[[Array, Array], Array]) -> float:
        """Returns the weighted sum of values(logits, labels), of as many at a time as fit a core's cache."""
        sums = []
        for begin in range(0, len(self.labels), _IN_CACHE):
            part = slice(begin, begin + _IN_CACHE)
            found = values(self.logits[part].astype(np.float64), self.labels[part].astype(np.float64))
            sums.append(float((found if self.weight is None else found * self.weight[part]).sum()))
        return math.fsum(sums)

    def _ne(self) -> float:
        self._need(0, 1)
        rate = float(self.ranks["positives"] / (self.ranks["positives"] + self.ranks["negatives"]))
        return self._logloss / float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))

    def _calibration(self) -> float:
        self._need(1)
        with np.errstate(over="ignore"):  # e^-x may be infinite: the probability is 0 then
            predicted = self._sum(lambda x, _: 1.0 / (1.0 + np.exp(-x)))
        return predicted / float(self.ranks["positives"])

    def _of_groups(self, name: str) -> float:
        if self.grouped is None:
            raise UndefinedError("the samples have no group")
        if self.skipped_groups(name) == (count := self.ranks["num_groups"]):
            classes = "a label of 1" if top_of(name) else "labels of 0 and of 1"
            raise UndefinedError(f"none of {count} groups has {classes}")
        if (top := top_of(name)) is None:
            return float(self.ranks[_GAUC[name]])
        return float(self.ranks["top"][self.ks.index(top[1])][TOP.index(top[0])])


def _as_float32(scores: Array) -> Array:
    """Returns float32 scores as they are, and for others numbers of the same order and the same ties."""
    if scores.dtype in (np.float16, np.float32):
        return np.ascontiguousarray(scores, np.float32)
    # As bits, because float32 hasn't enough whole numbers: floats of sign + are in the order of their bits.
    return np.unique(scores, return_inverse=True)[1].astype(np.uint32).view(np.float32)


def _binary_cross_entropy(x: Array, y: Array) -> Array:
    losses: Array = np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))) - x * y
    return losses  # log(1 + e^x) - x y, without overflow


def _cross_entropy_of_classes(x: Array, y: Array) -> Array:
    losses: Array = np.logaddexp.reduce(x, axis=1) - x[np.arange(len(x)), y.astype(np.int64)]
    return losses


def _probabilities(logits: Array) -> Array:
    """Returns the sigmoid, without overflow."""
    probabilities: Array = np.exp(-np.logaddexp(0.0, -logits))
    return probabilities


def _check_defined(logits: Array, labels: Array, weight: Array | None, *, binary: bool) -> None:
    if not len(labels):
        raise UndefinedError("no sample has a label")
    others = labels[(labels != 0) & (labels != 1)]
    if binary and len(others):
        raise UndefinedError(
            f"{len(others)} of {len(labels)} labels are neither 0 nor 1, such as {others[0]:g}; "
            "a missing label is NaN"
        )
    if weight is not None and not weight.any():
        raise UndefinedError("all weights are 0")
    bad = len(logits) - int(np.isfinite(logits).reshape(len(logits), -1).all(axis=1).sum())
    if bad:
        raise UndefinedError(f"the model's output isn't finite for {bad} of {len(logits)} samples")


def auc(scores: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the area under the ROC curve, ties counted half.

    Equals the probability that a positive has a higher score than a negative (Hanley & McNeil 1982), computed
    from one sort.

    Shapes: scores [n], labels [n], weight [n] or None.
    Raises UndefinedError unless there are labels of 0 and of 1, no others, and finite scores.
    """
    return LabelMetrics(scores, labels, weight).value("auc")


def logloss(logits: Array, labels: Array, weight: Array | None = None) -> float:
    """Returns the mean binary cross-entropy in nats, weighted if `weight` is given.

    Shapes: logits [n], labels [n], weight [n] or None.
    Raises UndefinedError unless all labels are 0 or 1, and all logits are finite.
    """
    return LabelMetrics(logits, labels, weight).value("logloss")


def known_auc(scores: Array, labels: Array) -> float | None:
    """Returns the AUC over the samples whose label is known (not NaN), None if it isn't defined.

    Shapes: scores, labels [n].
    """
    known = ~np.isnan(labels)
    try:
        return auc(scores[known], labels[known])
    except UndefinedError:
        return None
