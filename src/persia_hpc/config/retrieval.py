"""Says what a configuration asks of retrieval: a loss, features that are drawn, a ranked catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .losses import LOSSES
from .metric_names import asked_metrics, built_in, top_of
from .options import Fail, nearest
from .types import Config

MOST_DRAWN = 1 << 20  # of a sample


def retrieval_loss(config: Config) -> dict[str, Any] | None:
    """Returns the options of the loss "in_batch_softmax" if that is what is learned, else None."""
    if "in_batch_softmax" not in config.loss_names:
        return None
    losses = [task.loss for task in config.tasks.values()] or [LOSSES["in_batch_softmax"]]
    return {key: value for key, value in losses[0].items() if key != "name"}


def logq_source(config: Config) -> str:
    """Returns where the shares of items come from that the loss corrects for: off, counts or weights."""
    return str((retrieval_loss(config) or {}).get("logq", "off"))


def sampled_features(config: Config) -> dict[str, tuple[str, int]]:
    """Returns, of each feature with `sampled`, the catalogue's feature and how many ids a sample gets."""
    given = {name: f.sampled for name, f in config.features.items() if f.sampled is not None}
    return {name: (str(sampled["like"]), int(sampled["count"])) for name, sampled in given.items()}


def ranked_metrics(config: Config) -> list[str]:
    """Returns the metrics that are asked for and rank the whole catalogue; none without one."""
    return [
        name for name in built_in(asked_metrics(config)) if config.data.items and top_of(name) is not None
    ]


def label_metrics(config: Config) -> list[str]:
    """Returns the other ones of `train.metrics`, which are computed from logits and labels."""
    ranked = ranked_metrics(config)
    return [name for name in config.train.metrics if name not in ranked]


def task_metrics(config: Config) -> dict[str, list[str]]:
    """Returns the same of the tasks that have metrics of their own, instead of those of `train.metrics`."""
    ranked, tasks = ranked_metrics(config), config.tasks.items()
    own = {name: task.metrics for name, task in tasks if task.metrics is not None}
    return {name: [metric for metric in metrics if metric not in ranked] for name, metrics in own.items()}


def resolve_retrieval(config: Config, raw: Mapping[str, Any], fail: Fail) -> Config:
    """Returns the configuration with what follows from features that are drawn; checks all of retrieval.

    raw: the configuration as written; `fail` makes the error of a key.
    Raises UserError for what doesn't fit together.
    """
    _check_catalogue(config, fail)
    if (loss := retrieval_loss(config)) is not None:
        _check_loss(config, loss, fail)
    features = dict(config.features)
    counts: dict[int, str] = {}
    for name, feature in config.features.items():
        if feature.sampled is not None:
            path = ("features", name)
            like = _check_sampled(config, feature.sampled, path, fail)
            counts.setdefault(feature.sampled["count"], name)
            if len(counts) > 1:
                other = next(iter(counts.values()))
                problem = f"= {feature.sampled['count']}, but features.{other} has another count"
                raise fail(
                    (*path, "sampled", "count"), f"{problem}: expected the same, as they draw the same rows"
                )
            written = (raw.get("features") or {}).get(name) or {}
            table = features[like].table if like in features else None
            for key, value in (
                ("pooling", "jagged"),
                ("table", table or like),
                ("max_length", None),
                ("dim", None),
            ):
                if written.get(key) not in (None, value):
                    expected = "nothing" if value is None else repr(value)
                    problem = f"= {written[key]!r}, but what is drawn has {expected} there; leave it out"
                    raise fail((*path, key), problem)
            features[name] = dataclasses.replace(feature, pooling="jagged", table=table)
    return dataclasses.replace(config, features=features)


def _check_catalogue(config: Config, fail: Fail) -> None:
    data = config.data
    if "" in data.items:
        raise fail(("data", "items"), "contains an empty path")
    for key in ("item_feature", "exclude_feature"):
        if getattr(data, key) is not None and not data.items:
            raise fail(
                ("data", key), "is given without data.items, the catalogue that it is for; add data.items"
            )
    if data.items and data.item_feature is None:
        raise fail(
            ("data", "item_feature"), 'is missing: data.items needs it, for instance item_feature = "item"'
        )
    exclude = data.exclude_feature
    if exclude is not None and (config.feature(exclude).table or exclude) != _item_table(config):
        problem = f"its ids are compared with those of {data.item_feature!r}, so both must use one table"
        raise fail(("data", "exclude_feature"), f"= {exclude!r}: {problem}; set features.{exclude}.table")
    for name in built_in(asked_metrics(config)):
        if name.startswith("hr@") and not data.items:
            tasks = [
                ("tasks", task, "metrics") for task, it in config.tasks.items() if name in (it.metrics or ())
            ]
            problem = "ranks the whole catalogue of a retrieval model; add data.items"
            raise fail((*tasks, ("train", "metrics"))[0], f"= {name!r}: {problem}")


def _check_loss(config: Config, loss: Mapping[str, Any], fail: Fail) -> None:
    """Checks that nothing else is learned beside "in_batch_softmax", nor asked for that it can't give."""
    if len(config.tasks) > 1:
        raise fail(("tasks",), f'are {len(config.tasks)}: expected one, as its loss is "in_batch_softmax"')
    for key in ("compile", "cuda_graphs", "progressive"):
        if getattr(config.train, key):
            problem = "the loss \"in_batch_softmax\" doesn't run the model's forward; leave it out"
            raise fail(("train", key), f"is set, but {problem}")
    path: Sequence[str] = ("tasks", next(iter(config.tasks)), "loss") if config.tasks else ("train", "loss")
    if loss["negatives"] != "batch" and not sampled_features(config):
        example = '[features.negatives] sampled = { like = "item", count = 100 }'
        raise fail(
            (*path, "negatives"), f"= {loss['negatives']!r}: no feature is drawn; add one, as {example}"
        )
    logq = loss["logq"]
    if loss["halve_every"] and logq != "counts":
        problem = f'= {loss["halve_every"]}: it ages the counts of logq = "counts", but logq = {logq!r}'
        raise fail((*path, "halve_every"), f"{problem}; leave one out")
    if logq != "off" and not config.data.items:
        problem = f"= {logq!r} needs a catalogue, which says what items are"
        raise fail((*path, "logq"), f"{problem}; add data.items")
    if logq != "off" and config.table(_item_table(config)).hash is not None:
        problem = f"the table {_item_table(config)!r} of items is hashed, so rows don't tell items apart"
        raise fail((*path, "logq"), f"= {logq!r}: {problem}; leave one out")


def _item_table(config: Config) -> str:
    item = str(config.data.item_feature)
    return config.feature(item).table or item


def _check_sampled(config: Config, sampled: Mapping[str, Any], path: tuple[str, ...], fail: Fail) -> str:
    """Returns the feature that items are drawn for."""
    path = (*path, "sampled")
    for key in sampled:
        if key not in ("like", "count"):
            raise fail((*path, str(key)), f"is not a known key{nearest(str(key), ('like', 'count'))}")
    like, count = sampled.get("like"), sampled.get("count")
    if not isinstance(like, str) or like in sampled_names(config):
        raise fail((*path, "like"), f"= {like!r}: expected the name of a feature of data.items")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_DRAWN:
        raise fail((*path, "count"), f"= {count!r}: expected an integer from 1 to {MOST_DRAWN}")
    if not config.data.items:
        raise fail(path, "draws from a catalogue, which isn't given; add data.items")
    for sequence, members in config.features_of_sequences.items():
        if path[1] in members:
            problem = "whose ids are events and would be cut; leave it out there"
            raise fail(path, f"is given, but the feature is in [sequences.{sequence}], {problem}")
    return like


def sampled_names(config: Config) -> list[str]:
    """Returns the names of the features with `sampled`."""
    return [name for name, feature in config.features.items() if feature.sampled is not None]
