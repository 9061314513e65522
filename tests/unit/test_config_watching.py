"""Which metric a run watches follows from the configuration, and must be one that evaluations report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persia_hpc.config import Config, load_config
from persia_hpc.config.watching import (
    Watched,
    best_metric,
    check_metrics,
    keeps_best,
    metric_names,
    writes_checkpoints,
)
from persia_hpc.errors import UserError
from persia_hpc.trainer.batch import Inputs
from persia_hpc.trainer.metrics import Wanted, evaluate_metrics

OWN = ["tests.support.models:mean_logit"]


def config(**train: Any) -> Config:
    return load_config(
        {"data": {"train": "t.h5", "valid": "v.h5"}, "model": {"class": "tower"}, "train": train}
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("auc", "max")),
        ({"metric": "logloss"}, ("logloss", "min")),
        ({"metric": "logloss_buy"}, ("logloss_buy", "min")),
        ({"metric": "auc_logloss"}, ("auc_logloss", "max")),
        ({"metric": "my_metrics:rmse", "mode": "min"}, ("rmse", "min")),
        ({"metric": "logloss", "mode": "max"}, ("logloss", "max")),
    ],
)
def test_the_name_says_what_is_better_unless_the_mode_does(
    options: dict[str, str], expected: tuple[str, str]
) -> None:
    watched = Watched.of(options)
    assert (watched.metric, watched.mode) == expected
    assert watched.better(2.0, 1.0) == (watched.mode == "max")
    assert watched.better(1.0, None)
    assert not watched.better(1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train.early_stop": {"mode": "up"}}, ["train.early_stop.mode = 'up'", '"max"', '"min"']),
        ({"train.early_stop": 3}, ["train.early_stop = 3", 'metric = "auc", patience = 3']),
        ({"train.keep_best": True, "data.valid": []}, ["train.keep_best", "data.valid"]),
        ({"train.keep_best": "acu"}, ["train.keep_best.metric = 'acu'", "did you mean 'auc'"]),
        ({"train.keep_best": {"patience": 1}}, ["train.keep_best.patience", "metric, mode"]),
        ({"train.keep_best": 1}, ["train.keep_best = 1", "expected a table"]),
    ],
)
def test_mistakes_are_named_with_their_key_and_what_was_expected(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        load_config(config().resolved(), changes)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("train", "keeps", "metric"),
    [
        ({}, False, "auc"),
        ({"keep_best": True}, True, "auc"),
        ({"keep_best": "logloss"}, True, "logloss"),
        ({"early_stop": {"metric": "logloss"}}, True, "logloss"),
        ({"early_stop": {"metric": "logloss"}, "keep_best": True}, True, "logloss"),
        ({"early_stop": {"metric": "logloss"}, "keep_best": "auc"}, True, "auc"),
        ({"early_stop": {"metric": "logloss"}, "keep_best": False}, False, "logloss"),
        ({"early_stop": {}, "save": False}, False, "auc"),
        ({"early_stop": {}, "save": False, "keep_best": True}, True, "auc"),
    ],
)
def test_the_best_is_kept_by_default_with_early_stopping(
    train: dict[str, Any], keeps: bool, metric: str
) -> None:
    found = config(**train)
    assert (keeps_best(found.train), best_metric(found).metric) == (keeps, metric)


@pytest.mark.parametrize(
    ("changes", "writes"),
    [
        ({}, True),
        ({"train.save": False}, False),
        ({"train.save": False, "train.early_stop": {}}, False),
        ({"train.save": False, "train.keep_best": True}, True),
        ({"train.save": False, "checkpoint.every": 5}, True),
        ({"train.save": False, "checkpoint.every_seconds": 0.5}, True),
    ],
)
def test_checkpoints_are_written_at_the_end_of_the_best_and_on_time(
    changes: dict[str, Any], writes: bool
) -> None:
    assert writes_checkpoints(load_config(config().resolved(), changes)) == writes


@pytest.mark.parametrize("labels", [("click",), ("click", "buy")])
def test_the_known_names_are_those_that_evaluations_report(labels: tuple[str, ...]) -> None:
    values = np.eye(4, len(labels), dtype=np.float32)
    wanted = Wanted.of(config(metrics=OWN), Inputs((), 1, labels))
    reported = evaluate_metrics(values, values, None, None, wanted)
    assert set(metric_names(OWN, labels)) == set(reported) - {"samples"}


def test_a_metric_that_is_not_reported_is_refused_with_those_that_are() -> None:
    for labels, metric in ((("click",), "auc_click"), (("click", "buy"), "auc_byu")):
        for key in ("early_stop", "keep_best"):
            with pytest.raises(UserError, match=rf"train.{key}: .* no metric '{metric}', but auc, logloss"):
                check_metrics(config(**{key: {"metric": metric}}, metrics=OWN), labels)
    check_metrics(config(early_stop={"metric": "logloss_buy"}), ("click", "buy"))
    check_metrics(config(early_stop={"metric": OWN[0]}, metrics=[*OWN, *OWN]), ("click",))


@pytest.mark.parametrize("key", ["early_stop", "plateau", "keep_best"])
def test_a_metric_that_no_loss_has_cant_be_watched(key: str) -> None:
    wanted: Any = True if key == "keep_best" else {}
    with pytest.raises(UserError, match=rf"train.{key}: .* no metric 'auc', but rmse, mae"):
        check_metrics(config(loss="mse", **{key: wanted}), ("stars",))
    check_metrics(config(loss="mse", early_stop={"metric": "rmse"}), ("stars",))


@pytest.mark.parametrize("name", ["auc", "samples", "auc_click", "undefined", "mine"])
def test_a_function_with_the_name_of_another_metric_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name!r} is already the name"):
        check_metrics(config(metrics=["other:mine", f"module:{name}"]), ("click", "buy"))
