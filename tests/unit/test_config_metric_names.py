"""Names of metrics: the built-in ones are known, others are refused with what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from persia_hpc.config import Config, load_config
from persia_hpc.config.metric_names import (
    FORMS,
    base_of,
    built_in,
    is_grouped,
    name_problem,
    own_names,
    top_of,
)
from persia_hpc.config.watching import Watched, check_metrics, metric_names
from persia_hpc.errors import UserError


def config(**train: Any) -> Config:
    data = {"train": "t.h5", "valid": "v.h5"}
    return load_config({"data": data, "model": {"class": "tower"}, "train": train})


def test_names_say_what_they_are() -> None:
    assert top_of("recall@10") == ("recall", 10)
    assert top_of("gauc@groups") is None
    assert [name for name in FORMS if is_grouped(name.replace("@K", "@5"))] == [
        *("gauc", "gauc@groups", "gauc@positives", "recall@K", "ndcg@K")
    ]
    assert all(name_problem(name.replace("@K", "@5")) is None for name in FORMS)
    metrics = ["ne", "m:mine", "auc", "gauc", "ne", "m:mine"]
    assert (built_in(metrics), own_names(metrics)) == (["ne", "gauc"], ["mine"])


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("recall@0", ["K from 1 to", "in recall@K, such as recall@10"]),
        ("recall@-3", ["in recall@K"]),
        ("ndcg@1.5", ["in ndcg@K"]),
        ("ndcg@", ["in ndcg@K"]),
        ("ndcg@K", ["in ndcg@K"]),
        ("recall@99999999999999999999", ["in recall@K"]),
        ("recall@2147483648", ["K from 1 to 2147483647"]),
        (
            "gacu",
            [
                "expected auc, logloss, ne, calibration, pr_auc, rmse, mae, accuracy, gauc",
                '"module:function"',
                "did you mean 'gauc'",
            ],
        ),
        ("hit@10", ["recall@K, ndcg@K", '"module:function"']),
        ("a:b:c", ['expected an import path "module:name"']),
    ],
)
def test_another_name_is_refused_with_those_that_are_known(metric: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config(metrics=[metric])
    text = str(caught.value)
    assert all(part in text for part in [f"train.metrics = '{metric}': ", *parts]), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *(("ne", "min"), ("ne_buy", "min"), ("gauc", "max"), ("gauc@groups", "max"), ("pr_auc_buy", "max")),
        *(("recall@5", "max"), ("logloss_buy", "min"), ("never", "max")),
    ],
)
def test_what_is_better_follows_from_the_name(metric: str, mode: str) -> None:
    metrics = ["ne", "gauc", "gauc@groups", "pr_auc", "recall@5", "m:never"]
    for key in ("early_stop", "keep_best"):
        train = config(metrics=metrics, **{key: {"metric": metric}}).train
        assert Watched.of(getattr(train, key), train.metrics) == Watched(metric, mode)
    assert Watched.of({"metric": metric, "mode": "max"}, metrics).mode == "max"


def test_a_function_of_the_users_own_with_such_a_name_stays_theirs() -> None:
    assert Watched.of({"metric": "ne"}, ["m:ne"]).mode == "max"
    assert base_of("calibration", ["m:calibration"]) is None
    check_metrics(config(metrics=["m:calibration"], early_stop={"metric": "calibration"}), ("label",))
    with pytest.raises(UserError, match="'ne' is already the name"):
        check_metrics(config(metrics=["ne", "m:ne"]), ("label",))


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("calibration", "is best at 1"),
        ("calibration_buy", "is best at 1"),
        ("gauc", "isn't evaluated; add 'gauc' to train.metrics"),
        ("recall@7", "isn't evaluated; add 'recall@7' to train.metrics"),
        ("recall@0", "expected a metric that is evaluated"),
    ],
)
def test_what_cannot_be_watched_says_so(metric: str, text: str) -> None:
    for key in ("early_stop", "keep_best"):
        with pytest.raises(UserError, match=f"train.{key}.metric = '{metric}': {text}"):
            config(metrics=["calibration", "recall@8"], **{key: {"metric": metric}})


def test_each_label_has_each_metric() -> None:
    names = metric_names(["gauc", "recall@5"], ("click", "buy"))
    assert names[:4] == ["auc", "logloss", "gauc", "recall@5"]
    assert set(names[4:]) == {f"{n}_{label}" for n in names[:4] for label in ("click", "buy")}
    check_metrics(config(metrics=["gauc"], early_stop={"metric": "gauc_buy"}), ("click", "buy"))
    with pytest.raises(UserError, match=r"no metric 'gauc_by', but .*; did you mean 'gauc_buy'"):
        check_metrics(config(metrics=["gauc"], early_stop={"metric": "gauc_by"}), ("click", "buy"))
