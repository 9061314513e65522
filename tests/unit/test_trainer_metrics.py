"""Exact metrics equal scikit-learn's, ties and weights included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from persia_hpc.config.types import METRICS
from persia_hpc.errors import UserError
from persia_hpc.trainer.metrics import auc, evaluate_metrics, load_metrics, logloss


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


def test_auc_of_one_class_is_undefined():
    assert math.isnan(auc(np.array([1.0, 2.0]), np.array([1.0, 1.0])))


def test_logloss_of_extreme_logits_is_finite():
    assert logloss(np.array([1e4, -1e4]), np.array([0.0, 1.0])) == pytest.approx(1e4)


def test_several_labels_and_a_custom_metric():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 2)), rng.integers(0, 2, (50, 2)).astype(float)
    result = evaluate_metrics(logits, labels, None, None, ("a", "b"), {"n": lambda x, y, w, g: len(x)})
    assert result["auc"] == pytest.approx((result["auc_a"] + result["auc_b"]) / 2)
    assert result["samples"] == result["n"] == 50


def test_a_metric_that_cannot_be_imported_is_named():
    with pytest.raises(UserError, match=r"train\.metrics 'no_such_module:f': no module"):
        load_metrics(["no_such_module:f"])


def test_the_metrics_that_the_configuration_knows_are_always_computed() -> None:
    labels = np.array([[0.0], [1.0]], np.float32)
    found = evaluate_metrics(np.zeros((2, 1)), labels, None, None, ("label",), load_metrics(METRICS))
    assert set(found) == {"samples", *METRICS}
