"""Says which metric of the evaluations a run watches, and whether it writes checkpoints at all.

A metric is watched to stop early and to call a checkpoint the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persia_hpc.errors import UserError

from .metric_names import FALLING, asked_metrics, base_of, metrics_of, own_names
from .options import did_you_mean
from .retrieval import label_metrics, ranked_metrics, task_metrics
from .types import METRICS, Config, TrainConfig

# What an evaluation reports beside metrics, so that none may be called so.
RESERVED = (
    *("event", "split", "step", "samples", "missing_labels", "skipped_groups", "undefined", "uncounted"),
    "slices",
    "rate_factor",
    "unknown_items",
)


@dataclass(frozen=True)
class Watched:
    """Holds the name of a metric, and whether its largest or its smallest value is the best."""

    metric: str
    mode: str  # "max" or "min"

    @classmethod
    def of(cls, options: Mapping[str, Any], metrics: Sequence[str] = ()) -> Watched:
        """Returns what the options `metric` and `mode` say; without `mode` the name decides.

        metrics: those that are asked for.
        """
        metric = str(options.get("metric", "auc")).rpartition(":")[2]  # a custom one by its function's name
        falls = metric == "logloss" or metric.startswith("logloss_") or base_of(metric, metrics) in FALLING
        return cls(metric, options.get("mode") or ("min" if falls else "max"))

    def better(self, value: float, best: float | None, min_delta: float = 0.0) -> bool:
        """Returns whether `value` is better than the best one so far, if any, by more than `min_delta`."""
        if best is None:
            return True
        return value > best + min_delta if self.mode == "max" else value < best - min_delta


def keeps_best(train: TrainConfig) -> bool:
    """Returns whether the best checkpoint is kept: as written, else to go back to it or to stop early."""
    if train.keep_best is None:
        if train.restore_best:
            return True
        return train.early_stop is not None and train.save
    return train.keep_best is not False


def writes_checkpoints(config: Config) -> bool:
    """Returns whether the standard loop writes any checkpoint, at its end or before."""
    checkpoint = config.checkpoint
    periodic = checkpoint.every > 0 or checkpoint.every_seconds > 0
    return config.train.save or keeps_best(config.train) or periodic


def best_metric(config: Config) -> Watched:
    """Returns by which metric an evaluation is the best: that of `keep_best`, of `early_stop`, or the AUC."""
    train = config.train
    own = train.keep_best if isinstance(train.keep_best, Mapping) else None
    return Watched.of(own or train.early_stop or {}, asked_metrics(config))


def watched_metrics(config: Config) -> dict[str, str]:
    """Returns the metric that each option of [train] watches, by the option's name."""
    train, asked = config.train, asked_metrics(config)
    keep_best = {"metric": best_metric(config).metric} if keeps_best(train) else None
    watching = (("early_stop", train.early_stop), ("keep_best", keep_best), ("plateau", train.plateau))
    return {key: Watched.of(given, asked).metric for key, given in watching if isinstance(given, Mapping)}


def metric_names(
    metrics: Sequence[str],
    labels: Sequence[str],
    losses: Sequence[str] = (),
    of_tasks: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Returns the names of the metrics that an evaluation reports, but for those of a catalogue.

    losses: of the labels; binary ones by default. of_tasks: of some labels, instead of the built-in ones.
    """
    losses = losses or ["bce"] * len(labels)
    each = [
        metrics_of(loss, (of_tasks or {}).get(label, metrics))
        for label, loss in zip(labels, losses, strict=True)
    ]
    ours = dict.fromkeys((*METRICS, *(name for names in each for name in names)))
    of_labels = [f"{name}_{label}" for label, names in zip(labels, each, strict=True) for name in names]
    return [*ours, *(of_labels if len(labels) > 1 else []), *own_names(metrics)]


def reported_names(config: Config, labels: Sequence[str]) -> list[str]:
    """Returns the names of all metrics that evaluations of these labels or tasks report."""
    losses, of_tasks = config.losses_of(labels), task_metrics(config)
    return [*metric_names(label_metrics(config), labels, losses, of_tasks), *ranked_metrics(config)]


def watchable_names(config: Config, labels: Sequence[str]) -> list[str]:
    """Returns those of `reported_names` that some label has: AUC and log loss may be none's."""
    learned = {name for loss in config.losses_of(labels) for name in metrics_of(loss, ())}
    return [name for name in reported_names(config, labels) if name not in METRICS or name in learned]


def check_metrics(config: Config, labels: Sequence[str]) -> None:
    """Checks that the watched metrics are among those that evaluations report, and that names differ.

    labels: of the tasks.

    Raises UserError if not.
    """
    names = reported_names(config, labels)
    for i, name in enumerate(names):
        if name in names[:i] or name in RESERVED:
            raise UserError(
                f"train.metrics: {name!r} is already the name of something that evaluations report; give the "
                "function another name"
            )
    names = watchable_names(config, labels)
    for key, metric in watched_metrics(config).items():
        if metric not in names:
            raise UserError(
                f"train.{key}: evaluations of this data report no metric {metric!r}, but "
                f"{', '.join(names)}{did_you_mean(metric, names)}"
            )
