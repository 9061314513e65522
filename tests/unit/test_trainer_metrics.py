"""Exact metrics equal scikit-learn's, ties and weights included."""

from __future__ import annotations

import json
import math
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from persia_hpc.config.types import METRICS
from persia_hpc.config.watching import metric_names
from persia_hpc.errors import UserError
from persia_hpc.trainer.label_metrics import auc, known_auc, logloss
from persia_hpc.trainer.metrics import SLICES, MetricError, Wanted, evaluate_metrics, load_metrics


@settings(deadline=None)
@given(n=st.integers(2, 200), levels=st.integers(1, 50), weighted=st.booleans(), seed=st.integers(0, 10**6))
def test_auc_and_logloss_equal_scikit_learn(n, levels, weighted, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.integers(0, levels, n) / 7 - 2).astype(np.float32)  # few levels: many ties
    labels = rng.integers(0, 2, n).astype(np.float32)
    labels[:2] = [0, 1]
    weight = rng.random(n).astype(np.float32) + 0.1 if weighted else None
    assert auc(logits, labels, weight) == pytest.approx(roc_auc_score(labels, logits, sample_weight=weight))
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = log_loss(labels, probability, sample_weight=weight)
    assert logloss(logits, labels, weight) == pytest.approx(expected, rel=1e-6)


NAN = math.nan
SCORES = np.array([0.5, -1.0, 2.0, 0.1], np.float32)
BOTH = ("auc", "logloss")


@pytest.mark.parametrize(
    ("labels", "weight", "scores", "undefined", "reason"),
    [
        ([0, 0, 0, 0], None, SCORES, ["auc"], "all labels are 0"),
        ([1, 1, NAN, 1], None, SCORES, ["auc"], "all labels are 1"),
        ([0, 0, 1, 1], [1, 1, 0, 0], SCORES, ["auc"], "all labels with a weight are 0"),
        ([0, 1, 0, 1], [0, 0, 0, 0], SCORES, BOTH, "all weights are 0"),
        ([0, 1, NAN, NAN], [0, 0, 1, 1], SCORES, BOTH, "all weights are 0"),
        ([-1, 1, 0, -1], None, SCORES, BOTH, "2 of 4 labels are neither 0 nor 1, such as -1"),
        ([0.5, 1, 0, NAN], None, SCORES, BOTH, "1 of 3 labels are neither 0 nor 1, such as 0.5"),
        ([NAN, NAN, NAN, NAN], None, SCORES, BOTH, "no sample has a label"),
        ([0, 1, 0, 1], None, [1, NAN, 2, 3], BOTH, "output isn't finite for 1 of 4 samples"),
        ([0, 1, 0, 1], None, [1, math.inf, 2, -math.inf], BOTH, "output isn't finite for 2 of 4 samples"),
        ([], None, [], BOTH, "no sample has a label"),
    ],
)
def test_a_metric_that_is_not_defined_is_none_with_the_reason(labels, weight, scores, undefined, reason):
    logits, labels = (np.array(x, np.float32).reshape(-1, 1) for x in (scores, labels))
    weight = None if weight is None else np.array(weight, np.float32)
    result = evaluate_metrics(logits, labels, weight, None, Wanted(("click",)))
    assert {name for name in BOTH if result[name] is None} == set(undefined) == set(result["undefined"])
    assert all(reason in text for text in result["undefined"].values())
    assert all(math.isfinite(result[name]) for name in BOTH if name not in undefined)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), weighted=st.booleans(), missing=st.floats(0, 0.9))
def test_missing_labels_are_left_out_of_the_metrics_of_their_label(seed, weighted, missing):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (60, 2)).astype(np.float32)
    labels[:2] = [[0, 0], [1, 1]]
    labels[2:][rng.random((58, 2)) < missing] = NAN
    weight = (rng.random(60) + 0.1).astype(np.float32) if weighted else None
    result = evaluate_metrics(logits, labels, weight, None, Wanted(("click", "buy")))
    assert "undefined" not in result
    assert result["samples"] == 60
    counts = zip(("click", "buy"), np.isnan(labels).sum(axis=0).tolist(), strict=True)
    assert result.get("missing_labels", {}) == {name: count for name, count in counts if count}
    for i, name in enumerate(("click", "buy")):
        known = ~np.isnan(labels[:, i])
        w = None if weight is None else weight[known]
        expected = roc_auc_score(labels[known, i], logits[known, i], sample_weight=w)
        assert result[f"auc_{name}"] == pytest.approx(expected)
        probability = 1 / (1 + np.exp(-logits[known, i].astype(np.float64)))
        expected = log_loss(labels[known, i], probability, sample_weight=w)
        assert result[f"logloss_{name}"] == pytest.approx(expected, rel=1e-6)
    assert result["auc"] == pytest.approx((result["auc_click"] + result["auc_buy"]) / 2)


def test_a_mean_over_labels_needs_every_label():
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 0]], np.float32)
    result = evaluate_metrics(np.stack([SCORES, SCORES], 1), labels, None, None, Wanted(("click", "buy")))
    assert result["auc_click"] == pytest.approx(roc_auc_score(labels[:, 0], SCORES))
    assert (result["auc"], result["auc_buy"]) == (None, None)
    assert result["undefined"] == {"auc_buy": "all labels are 0", "auc": "auc_buy is undefined"}
    assert result["logloss"] == pytest.approx((result["logloss_click"] + result["logloss_buy"]) / 2)


def divides(logits, labels, weight, group):
    return 1 / len(logits[labels == 7])


def ends(logits, labels, weight, group):
    sys.exit(3)


def evaluate_own(function, labels=(0, 1, 0, 1), weight=None, logits=SCORES):
    labels, logits = np.array(labels, np.float32)[:, None], np.array(logits, np.float32)[:, None]
    weight = None if weight is None else np.array(weight, np.float32)
    return evaluate_metrics(logits, labels, weight, None, Wanted(("label",), own={"own": function}))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda *_: None, "returned None"),
        (lambda *_: NAN, "returned nan"),
        (lambda *_: -math.inf, "returned -inf"),
    ],
)
def test_a_metric_of_the_users_own_may_be_undefined(function, reason):
    result = evaluate_own(function)
    assert result["own"] is None
    assert reason in result["undefined"]["own"]


@pytest.mark.parametrize("function", [divides, lambda x, y, w, g: roc_auc_score([1, 1.5], [0, 1])])
@pytest.mark.parametrize(
    "facts",
    [
        {"labels": [0, 0, 0, 0]},
        {"labels": [2.5, NAN, 2.5, NAN]},
        {"labels": [NAN, NAN, NAN, NAN]},
        {"labels": [0, 1, 1, 1], "weight": [0, 1, 1, 1]},
        {"logits": [0, NAN, 1, 2]},
    ],
)
def test_an_exception_of_a_metric_that_the_samples_explain_makes_it_undefined(function, facts):
    result = evaluate_own(function, **facts)
    assert result["own"] is None
    assert re.search(r"(ZeroDivision|Value)Error: ", result["undefined"]["own"])


@pytest.mark.parametrize(
    ("function", "facts", "reason"),
    [
        (divides, {}, r"ZeroDivisionError: division by zero \(\S*test_trainer_metrics\.py:\d+\)"),
        (divides, {"labels": [1, 2, NAN, 3]}, "ZeroDivisionError: "),
        (divides, {"weight": [1, 1, 0, 0]}, "ZeroDivisionError: "),
        (lambda x, y, w, g: roc_auc_score([1, 1.5], [0, 1]), {}, r"ValueError: .* \(\S*test_trainer\S*\)"),
        (lambda x, y, w, g: w.sum(), {}, "AttributeError: 'NoneType' object has no attribute 'sum'"),
        (lambda x, y, w, g: w.sum(), {"labels": [1, 1, 1, 1]}, "AttributeError: "),
        (ends, {"labels": [1, 1, 1, 1]}, "SystemExit: 3"),
        (lambda x, y: 0.0, {}, r"TypeError: .* takes 2 positional arguments but 4 were given"),
    ],
)
def test_an_exception_of_a_metric_that_the_samples_do_not_explain_is_an_error(function, facts, reason):
    with pytest.raises(MetricError, match=f"train.metrics: own failed on 4 samples: {reason}") as caught:
        evaluate_own(function, **facts)
    assert "\n" not in str(caught.value)


def test_a_metric_may_call_ours():
    result = evaluate_own(lambda x, y, w, g: auc(x[:1, 0], y[:1, 0]))
    assert result["undefined"] == {"own": "all labels are 0"}


@pytest.mark.parametrize(
    ("value", "shown"), [("x", "'x'"), (np.ones((90, 1)), r"array\(\[\[1\.\], \[1\.\].*\.\.\.")]
)
def test_a_metric_of_the_users_own_that_returns_no_number_is_named(value, shown):
    with pytest.raises(
        UserError, match=rf"train\.metrics: own returned {shown}, expected a number"
    ) as caught:
        evaluate_own(lambda *_: value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_auc_of_the_bar_leaves_missing_labels_out():
    assert known_auc(SCORES, np.array([0, NAN, 1, 0])) == 1.0
    assert known_auc(SCORES, np.array([0, NAN, 0, 0])) is None


def test_logloss_of_extreme_logits_is_finite():
    assert logloss(np.array([1e4, -1e4]), np.array([0.0, 1.0])) == pytest.approx(1e4)


def test_several_labels_and_a_custom_metric():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, (50, 2)).astype(float)
    result = evaluate_metrics(
        logits, labels, None, None, Wanted(("a", "b"), own={"n": lambda x, y, w, g: len(x)})
    )
    assert result["auc"] == pytest.approx((result["auc_a"] + result["auc_b"]) / 2)
    assert result["samples"] == result["n"] == 50


def test_a_metric_that_cannot_be_imported_is_named():
    with pytest.raises(UserError, match=r"train\.metrics 'no_such_module:f': no module"):
        load_metrics(["no_such_module:f"])


def test_the_metrics_that_the_configuration_knows_are_always_computed() -> None:
    labels = np.array([[0.0], [1.0]], np.float32)
    found = evaluate_metrics(
        np.zeros((2, 1)), labels, None, None, Wanted(("label",), own=load_metrics(METRICS))
    )
    assert set(found) == {"samples", *METRICS}


def test_built_in_metrics_of_each_label_and_their_means_with_the_groups_that_they_skip():
    random = np.random.default_rng(3)
    logits, group = random.normal(size=(300, 2)).astype(np.float32), random.integers(0, 40, 300)
    labels = (random.random((300, 2)) < 0.3).astype(np.float32)
    labels[random.random((300, 2)) < 0.2] = NAN
    wanted = Wanted(("click", "buy"), built_in=("gauc", "ndcg@2"))
    result = evaluate_metrics(logits, labels, None, group, wanted)
    one_class = {}
    for i, label in enumerate(wanted.labels):
        known = ~np.isnan(labels[:, i])
        groups = [known & (group == g) for g in np.unique(group[known])]
        both = [g for g in groups if len(np.unique(labels[g, i])) == 2]
        aucs = [roc_auc_score(labels[g, i], logits[g, i]) for g in both]
        expected = np.average(aucs, weights=[g.sum() for g in both])
        assert result[f"gauc_{label}"] == pytest.approx(expected, rel=1e-12)
        one_class[f"gauc_{label}"] = len(groups) - len(both)
        one_class[f"ndcg@2_{label}"] = sum(labels[g, i].sum() == 0 for g in groups)
    assert result["gauc"] == pytest.approx((result["gauc_click"] + result["gauc_buy"]) / 2)
    assert result["skipped_groups"] == one_class
    assert all(one_class.values())
    assert "undefined" not in result


def test_a_task_with_metrics_of_its_own_has_no_others_and_means_are_of_those_that_have_them():
    random = np.random.default_rng(3)
    logits, group = random.normal(size=(300, 2)).astype(np.float32), random.integers(0, 40, 300)
    labels = (random.random((300, 2)) < 0.3).astype(np.float32)
    all_have = evaluate_metrics(
        logits, labels, None, group, Wanted(("click", "buy"), built_in=("gauc", "ne"))
    )
    wanted = Wanted(("click", "buy"), built_in=("gauc",), of_tasks={"buy": ("ne",)})
    result = evaluate_metrics(logits, labels, None, group, wanted)
    assert result.keys() == all_have.keys() - {"gauc_buy", "ne_click"}
    assert (result["gauc"], result["ne"]) == (result["gauc_click"], result["ne_buy"])
    mine = result.keys() - {"gauc", "ne", "skipped_groups"}
    assert {name: result[name] for name in mine} == {name: all_have[name] for name in mine}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    alone = evaluate_metrics(
        logits[:, :1], labels[:, :1], None, np.arange(300), Wanted(("click",), built_in=("gauc",))
    )
    assert alone["gauc"] is None
    assert "none of" in alone["undefined"]["gauc"]
    assert "skipped_groups" not in alone


def test_slices_are_the_metrics_of_their_samples_alone_the_largest_first():
    random = np.random.default_rng(4)
    n = 3000
    logits, labels = (
        random.normal(size=(n, 1)).astype(np.float32),
        random.integers(0, 2, (n, 1)).astype(float),
    )
    labels[random.random((n, 1)) < 0.1] = NAN
    weight, group = random.random(n).astype(np.float32), random.integers(0, 9, n)
    country = (random.zipf(1.5, n) % 40).astype(np.uint64) + np.uint64(2**63)
    device = random.integers(0, 2, n).astype(np.uint64)
    wanted = Wanted(("click",), (), (), ("gauc",), {"n": lambda x, *_: len(x)}, ("country", "device"), 12)
    result = evaluate_metrics(logits, labels, weight, group, wanted, np.stack([country, device], axis=1))
    assert list(result["slices"]) == ["country", "device"]
    for name, column in (("country", country), ("device", device)):
        counts = {int(i): int((column == i).sum()) for i in np.unique(column)}
        found = result["slices"][name]
        expected = sorted((i for i in counts if counts[i] >= 12), key=lambda i: (-counts[i], i))[:SLICES]
        assert list(found) == [str(i) for i in expected]
        for i, metrics in found.items():
            mine = column == int(i)
            plain = Wanted(wanted.labels, built_in=wanted.built_in, own=wanted.own)
            assert metrics == evaluate_metrics(logits[mine], labels[mine], weight[mine], group[mine], plain)
    assert len(result["slices"]["country"]) == SLICES < len(np.unique(country))
    few = Wanted(("click",), slices=("device",), slice_samples=n)
    assert "slices" not in evaluate_metrics(logits, labels, None, None, few, device[:, None])


LOSSES_OF_FOUR = ("bce", "softmax", "poisson", "focal")


def test_each_task_has_the_metrics_of_its_kind() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 6)).astype(np.float32)
    labels = np.stack([rng.integers(0, most, 200) for most in (2, 3, 9, 2)], axis=1).astype(np.float32)
    labels[::5, 1] = np.nan
    weight = rng.random(200).astype(np.float32)
    names = ("click", "stars", "count", "buy")
    wanted = Wanted(names, LOSSES_OF_FOUR, (1, 3, 1, 1), ("ne", "accuracy"))
    result = evaluate_metrics(logits, labels, weight, None, wanted)
    known = ~np.isnan(labels[:, 1])
    x, y, w = logits[known, 1:4].astype(np.float64), labels[known, 1].astype(int), weight[known]
    shares = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    expected = {
        "logloss_stars": np.average(-np.log(shares[np.arange(len(y)), y]), weights=w),
        "accuracy_stars": np.average(shares.argmax(axis=1) == y, weights=w),
        "rmse_count": np.sqrt(np.average((np.exp(logits[:, 4]) - labels[:, 2]) ** 2, weights=weight)),
        "mae_count": np.average(np.abs(np.exp(logits[:, 4]) - labels[:, 2]), weights=weight),
        "accuracy_buy": np.average((logits[:, 5] > 0) == labels[:, 3], weights=weight),
        "auc_buy": roc_auc_score(labels[:, 3], logits[:, 5], sample_weight=weight),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-6), name
    assert result["auc"] == pytest.approx((result["auc_click"] + result["auc_buy"]) / 2)
    three = [result[f"logloss_{label}"] for label in ("click", "stars", "buy")]
    assert result["logloss"] == pytest.approx(np.mean(three))
    assert result["missing_labels"] == {"stars": 40}
    losses = LOSSES_OF_FOUR
    assert set(metric_names(["ne", "accuracy"], names, losses)) == set(result) - {"samples", "missing_labels"}


def test_without_a_probability_there_is_no_auc() -> None:
    logits, labels = np.zeros((4, 1), np.float32), np.arange(4, dtype=np.float32)[:, None]
    result = evaluate_metrics(logits, labels, None, None, Wanted(("price",), ("mse",)))
    assert (result["auc"], result["logloss"], result["mae"]) == (None, None, 1.5)
    assert result["undefined"]["auc"] == "no label is learned as a probability"
