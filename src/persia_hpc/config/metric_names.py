"""Names the built-in metrics, and says what is wrong with a name that is none of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .types import METRICS, Config

OF_ALL = ("ne", "calibration", "pr_auc", "rmse", "mae", "accuracy")  # over all samples
OF_PROBABILITIES = ("ne", "calibration", "rmse", "mae", "accuracy")
ALWAYS = ("rmse", "mae", "accuracy")  # of labels that aren't binary
FALLING = ("ne", "rmse", "mae")  # the smallest is the best
GAUC = ("gauc", "gauc@groups", "gauc@positives")
TOP = ("recall", "ndcg")  # with @K, of a group or of a catalogue
RANKED = (*TOP, "hr")  # of a catalogue
FORMS = (*METRICS, *OF_ALL, *GAUC, *(f"{name}@K" for name in RANKED))
MOST = 2**31  # of K
_TOP = re.compile(rf"({'|'.join(RANKED)})@([1-9][0-9]{{0,9}})")


def metrics_of(loss: str, metrics: Iterable[str]) -> list[str]:
    """Returns the built-in metrics of a label with this loss: those that are always computed come first.

    metrics: those that are asked for, of which some make no sense for numbers and classes.
    """
    if loss in ("mse", "poisson"):
        return ["rmse", "mae"]
    if loss == "softmax":
        return ["logloss", "accuracy"]
    if loss == "in_batch_softmax":  # scores are no logits of probabilities
        return ["auc", *(name for name in built_in(metrics) if name not in OF_PROBABILITIES)]
    return [*METRICS, *built_in(metrics)]


def top_of(name: str) -> tuple[str, int] | None:
    """Returns ("recall", 10) of "recall@10"; None for the name of another metric."""
    match = _TOP.fullmatch(name)
    return (match[1], int(match[2])) if match and int(match[2]) < MOST else None


def is_grouped(name: str) -> bool:
    """Returns whether the built-in metric is a mean over the groups of `/group`."""
    top = top_of(name)
    return name in GAUC or (top is not None and top[0] in TOP)


def name_problem(name: str) -> str | None:
    """Returns what is wrong with the name of a metric other than "module:function", or None."""
    kind, at, _ = name.partition("@")
    if at and kind in RANKED and top_of(name) is None:
        return f"expected a whole number K from 1 to {MOST - 1} in {kind}@K, such as {kind}@10"
    if (name in FORMS and not name.endswith("@K")) or top_of(name) is not None:
        return None
    return f'expected {", ".join(FORMS)} or "module:function"'


def built_in(metrics: Iterable[str]) -> list[str]:
    """Returns the built-in metrics among those of `train.metrics`, without those that are always computed."""
    return [name for name in dict.fromkeys(metrics) if ":" not in name and name not in METRICS]


def asked_metrics(config: Config) -> list[str]:
    """Returns what `train.metrics` and the tasks' own metrics name, each once."""
    of_tasks = (name for task in config.tasks.values() for name in task.metrics or ())
    return list(dict.fromkeys((*config.train.metrics, *of_tasks)))


def own_names(metrics: Iterable[str]) -> list[str]:
    """Returns the names of the user's functions among those of `train.metrics`."""
    return [name.partition(":")[2] for name in dict.fromkeys(metrics) if ":" in name]


def base_of(name: str, metrics: Sequence[str]) -> str | None:
    """Returns the built-in metric that a reported one is, "ne" for "ne_buy"; None for a user's own."""
    if name in own_names(metrics):
        return None
    for base in dict.fromkeys((*METRICS, *built_in(metrics), *ALWAYS)):
        if name == base or name.startswith(f"{base}_"):
            return base
    return None


def watch_problem(name: str, metrics: Sequence[str]) -> str | None:
    """Returns why no run can watch a built-in metric, or None."""
    base = base_of(name, metrics)
    if ":" not in name and base == "calibration":
        return "is best at 1, neither at its largest nor at its smallest; watch ne or logloss"
    if base is None and name not in own_names(metrics) and ":" not in name and name_problem(name) is None:
        return f"isn't evaluated; add {name!r} to train.metrics"
    return None
