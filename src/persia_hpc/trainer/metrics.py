"""Computes exact metrics over all evaluated samples; a metric that isn't defined is None, with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, cast

import numpy as np

from persia_hpc._native import number_groups
from persia_hpc.arrays import Array
from persia_hpc.config.metric_names import built_in, is_grouped, metrics_of
from persia_hpc.config.retrieval import label_metrics, ranked_metrics, task_metrics
from persia_hpc.config.types import METRICS, Config
from persia_hpc.errors import UserError
from persia_hpc.user_objects import describe, load_object

from .batch import Inputs
from .label_metrics import LabelMetrics, UndefinedError
from .ranking import UNKNOWN, ranked_metric

Metric = Callable[[Array, Array, "Array | None", "Array | None"], "float | None"]
# What an evaluation returns: `samples`, each metric by its name; `missing_labels`, in how many samples each
# label is missing; `skipped_groups`, how many groups each metric leaves out; `undefined`, the reason for each
# metric that is None; `slices`, the same of samples with one id. The last four are left out if empty.
Metrics = dict[str, Any]
SLICES = 20  # of a feature, the largest


class MetricError(UserError):
    """Is raised, on every trainer, for a metric of the user's own that fails; what was trained is whole."""


@dataclass(frozen=True)
class Wanted:
    """Holds what evaluations compute."""

    labels: tuple[str, ...]
    losses: tuple[str, ...] = ()  # of the labels; empty: all are binary
    widths: tuple[int, ...] = ()  # outputs of the labels; empty: one each
    built_in: tuple[str, ...] = ()  # beside what is always computed
    own: Mapping[str, Metric] = field(default_factory=dict)  # by name
    slices: tuple[str, ...] = ()  # features
    slice_samples: int = 1  # that a slice has at least
    ranked: tuple[str, ...] = ()  # metrics of the ranks of a catalogue's items
    of_tasks: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of some labels, instead of built_in

    @classmethod
    def of(cls, config: Config, inputs: Inputs) -> Wanted:
        """Returns what the configuration asks for.

        Raises UserError for a function that can't be imported.
        """
        train, labels = config.train, inputs.labels
        names, own = tuple(built_in(label_metrics(config))), load_metrics(train.metrics)
        losses, slices = tuple(config.losses_of(labels)), tuple(train.slices)
        ranked, of_tasks = tuple(ranked_metrics(config)), task_metrics(config)
        widths, least = inputs.output_widths, train.slice_samples
        return cls(labels, losses, widths, names, own, slices, least, ranked, of_tasks)

    @property
    def num_outputs(self) -> int:
        """Returns how many logits a sample has."""
        return sum(self.widths) if self.widths else len(self.labels)

    def each(self) -> list[tuple[str, str, slice, list[str]]]:
        """Returns of each label the name, the loss, its columns of the logits, and its metrics."""
        found, begin = [], 0
        losses = self.losses or ("bce",) * len(self.labels)
        for label, loss, width in zip(self.labels, losses, self.widths or (1,) * len(losses), strict=True):
            names = metrics_of(loss, self.of_tasks.get(label, self.built_in))
            found.append((label, loss, slice(begin, begin + width), names))
            begin += width
        return found


def evaluate_metrics(
    logits: Array,
    labels: Array,
    weight: Array | None,
    group: Array | None,
    wanted: Wanted,
    slices: Array | None = None,
    ranks: Array | None = None,
) -> Metrics:
    """Computes `samples`, `auc` and `logloss`, the other metrics that are wanted, and all that of slices.

    Those of a label are computed over the samples where it is known (not NaN). With several labels the
    built-in ones are means over those that have the metric, and those of each label are given too. A mean
    over some of these could be compared with no other, so it isn't defined unless that of each label is.

    Shapes: logits [n, outputs], labels [n, L]; weight, group [n] or None; slices [n, S] ids or None; ranks
    [n, 2] of `ItemVectors.ranks`, or None.
    Raises MetricError for a custom metric that returns no number, or raises an exception although there are
    samples that it can be computed from.
    """
    result: Metrics = {"samples": len(labels)}
    undefined: dict[str, str] = {}
    missing: dict[str, int] = {}
    skipped: dict[str, int] = {}

    def add(name: str, compute: Callable[..., float], *arguments: Any) -> None:
        try:
            result[name] = compute(*arguments)
        except UndefinedError as error:
            result[name], undefined[name] = None, str(error)

    each = wanted.each()
    ours = dict.fromkeys((*METRICS, *(name for *_, names in each for name in names)))
    several = len(wanted.labels) > 1
    result |= dict.fromkeys(ours)  # their place is before those of the labels
    groups = None
    if group is not None and any(map(is_grouped, ours)):
        groups = number_groups(np.ascontiguousarray(group, np.int64))
    for i, (label, loss, columns, names) in enumerate(each):
        known = ~np.isnan(labels[:, i])
        rows: Any = slice(None) if known.all() else known  # the former copies nothing
        mine = LabelMetrics(
            logits[rows, columns] if loss == "softmax" else logits[rows, columns.start],
            labels[rows, i],
            None if weight is None else weight[rows],
            None if groups is None else groups[rows],
            names,
            loss,
        )
        for name in names:
            reported = f"{name}_{label}" if several else name
            add(reported, mine.value, name)
            if result[reported] is not None and (count := mine.skipped_groups(name)):
                skipped[reported] = count
        if not known.all():
            missing[label] = len(labels) - int(known.sum())
    for name in ours:
        having = [label for label, _, _, names in each if name in names]
        if several or not having:
            add(name, _mean, result, [f"{name}_{label}" for label in having])
    if ranks is not None:
        right = labels[:, 0] == 1
        for name in wanted.ranked:
            add(name, ranked_metric, name, ranks[right], None if weight is None else weight[right])
        if unknown := int((ranks[right, 0] == UNKNOWN).sum()):
            result["unknown_items"] = unknown
    for name, metric in wanted.own.items():
        add(name, _call, name, metric, logits, labels, weight, group)
    sliced = {}
    if slices is not None:
        sliced = _of_slices(logits, labels, weight, group, wanted, slices, ranks)
    facts = {"missing_labels": missing, "skipped_groups": skipped, "undefined": undefined, "slices": sliced}
    return result | {name: found for name, found in facts.items() if found}


def _of_slices(
    logits: Array,
    labels: Array,
    weight: Array | None,
    group: Array | None,
    wanted: Wanted,
    slices: Array,
    ranks: Array | None,
) -> dict[str, dict[str, Metrics]]:
    """Returns the metrics of the samples with one id, by feature and id, those of most samples first."""
    result: dict[str, dict[str, Metrics]] = {}
    for feature, column in zip(wanted.slices, slices.T, strict=True):
        ids, counts = np.unique(column, return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:SLICES]
        result[feature] = {}
        for i in largest[counts[largest] >= wanted.slice_samples]:
            mine = column == ids[i]
            result[feature][str(ids[i])] = evaluate_metrics(
                logits[mine],
                labels[mine],
                None if weight is None else weight[mine],
                None if group is None else group[mine],
                wanted,
                ranks=None if ranks is None else ranks[mine],
            )
    return {feature: found for feature, found in result.items() if found}


def _mean(metrics: Metrics, names: Sequence[str]) -> float:
    if not names:
        raise UndefinedError("no label is learned as a probability")
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
        if ":" in path
    }
