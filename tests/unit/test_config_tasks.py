"""Mistakes in `[tasks]` and `train.loss` are named with their key and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from persia_hpc.config import load_config
from persia_hpc.config.losses import LOSSES
from persia_hpc.config.retrieval import ranked_metrics, task_metrics
from persia_hpc.config.watching import check_metrics, reported_names
from persia_hpc.errors import UserError

MINIMAL = {"data": {"train": ["train.h5"]}, "model": {"class": "dlrm"}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train.loss": "bcee"}, ["train.loss = 'bcee'", "did you mean 'bce'"]),
        ({"train.loss": "softmax"}, ["train.loss = 'softmax'", "number of classes", "[tasks.LABEL]"]),
        ({"tasks.a.los": "bce"}, ["tasks.a.los is not a known key", "did you mean 'loss'"]),
        ({"tasks.a": 3}, ["tasks.a = 3 (integer): expected a table"]),
        ({"tasks.a.loss": "focl"}, ["tasks.a.loss = 'focl'", "did you mean 'focal'"]),
        ({"tasks.a.loss": {"gama": 1}}, ["tasks.a.loss.gama is not an option of 'bce'"]),
        ({"tasks.a.loss": {"smoothing": 2}}, ["tasks.a.loss.smoothing = 2", "from 0 to 1"]),
        ({"tasks.a.loss": {"pos_weight": 0}}, ["tasks.a.loss.pos_weight = 0", "above 0"]),
        ({"tasks.a.loss": {"name": "focal", "pos_weight": 2}}, ["pos_weight is not an option of 'focal'"]),
        ({"tasks.a.loss": "softmax"}, ["tasks.a.loss.classes is missing", "number of classes"]),
        ({"tasks.a.loss": {"name": "softmax", "classes": 1}}, ["tasks.a.loss.classes = 1", "from 2"]),
        ({"tasks.a.loss": {"name": "m:f", "x": 1}}, ["tasks.a.loss.x is not an option of 'm:f'"]),
        ({"tasks.a.loss": "my mod:f"}, ["tasks.a.loss = 'my mod:f'", "module:name"]),
        ({"tasks.a.weight": -1}, ["tasks.a.weight = -1.0: expected at least 0"]),
        ({"tasks.a.weight": 0}, ["tasks have weights of 0 only"]),
        (
            {"model.class": "esmm", "tasks": {"a": {}, "b": {"where": "a"}}},
            ["tasks.b.where = 'a'", '"esmm" learns a conversion from all samples'],
        ),
        (
            {"model.class": "esmm", "train.loss": "mse"},
            ['"esmm": learns probabilities', "loss 'mse'"],
        ),
        ({"tasks.a": {}, "train.loss": "mse"}, ["train.loss = 'mse'", "[tasks] are written too"]),
        ({"tasks.a.metrics": 3}, ["tasks.a.metrics = 3", "list"]),
        ({"tasks.a.metrics": ["gauk"]}, ["tasks.a.metrics = 'gauk': expected", "did you mean 'gauc'"]),
        ({"tasks.a.metrics": ["recall@0"]}, ["tasks.a.metrics = 'recall@0'", "whole number K"]),
        ({"tasks.a.metrics": ["m:f"]}, ["tasks.a.metrics = 'm:f'", "name it in train.metrics"]),
        ({"tasks.a.metrics": ["hr@10"]}, ["tasks.a.metrics = 'hr@10'", "add data.items"]),
        (
            {"tasks.a": {"loss": "mse", "metrics": ["rmse", "gauc"]}},
            ["tasks.a.metrics = 'gauc'", "the loss 'mse'", "rmse, mae"],
        ),
        (
            {"tasks.a": {"loss": {"name": "softmax", "classes": 3}, "metrics": ["auc"]}},
            ["tasks.a.metrics = 'auc'", "the loss 'softmax'", "logloss, accuracy"],
        ),
        (
            {"tasks.a": {"loss": "in_batch_softmax", "metrics": ["ne"]}},
            ["tasks.a.metrics = 'ne'", "the loss 'in_batch_softmax'"],
        ),
        (
            {"tasks.a.metrics": ["ne"], "tasks.b.metrics": [], "train.metrics": ["gauc"]},
            ["train.metrics = 'gauc'", "all tasks have metrics of their own"],
        ),
        (
            {"tasks.a.metrics": ["ne"], "tasks.b": {}, "train.early_stop": {"metric": "gauc"}},
            ["train.early_stop.metric = 'gauc'", "isn't evaluated"],
        ),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(MINIMAL, changes)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "softmax"])
def test_a_name_alone_has_the_losss_defaults(name: str) -> None:
    task = load_config(MINIMAL, {"tasks.buy.loss": name, "tasks.buy.where": "click"}).tasks["buy"]
    assert task.loss == {"name": name, **LOSSES[name]}
    assert (task.label, task.where, task.weight, task.num_outputs) == (None, "click", 1.0, 1)


def test_options_of_a_loss_may_leave_its_name_out() -> None:
    task = load_config(MINIMAL, {"tasks.buy.loss": {"smoothing": 0.1}}).tasks["buy"]
    assert task.loss == {"name": "bce", "smoothing": 0.1, "pos_weight": 1.0}


def test_a_task_reports_its_own_metrics_and_the_others_those_of_all() -> None:
    changes = {"tasks.a.metrics": ["ne"], "tasks.b": {}, "train.metrics": ["gauc", "my_metrics:f"]}
    config = load_config(MINIMAL, changes)
    both = ["auc", "logloss"]
    expected = [*both, "ne", "gauc", "auc_a", "logloss_a", "ne_a", "auc_b", "logloss_b", "gauc_b", "f"]
    assert reported_names(config, ["a", "b"]) == expected
    for metric, reported in (
        ("ne_a", True),
        ("gauc_b", True),
        ("ne", True),
        ("ne_b", False),
        ("gauc_a", False),
    ):
        watching = {"data.valid": ["v.h5"], "train.early_stop": {"metric": metric}}
        watched = load_config(MINIMAL, {**changes, **watching})
        if reported:
            check_metrics(watched, ["a", "b"])
        else:
            with pytest.raises(UserError, match=f"no metric '{metric}', but auc, logloss, ne, gauc"):
                check_metrics(watched, ["a", "b"])


def test_a_tasks_own_metrics_rank_the_catalogue_where_there_is_one() -> None:
    task = {"loss": "in_batch_softmax", "metrics": ["recall@5", "hr@5", "gauc"]}
    config = load_config(MINIMAL, {"data.items": ["i.h5"], "data.item_feature": "item", "tasks.a": task})
    assert ranked_metrics(config) == ["recall@5", "hr@5"]
    assert task_metrics(config) == {"a": ["gauc"]}
