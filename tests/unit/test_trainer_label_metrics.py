"""The built-in metrics equal scikit-learn's, or a search through all orders; ties, weights, groups."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, ndcg_score, roc_auc_score

from persia_hpc._native import number_groups
from persia_hpc.arrays import Array
from persia_hpc.trainer.label_metrics import LabelMetrics, UndefinedError, auc

EXACT = {"rel": 1e-12, "abs": 1e-12}
SAMPLES = {
    "n": st.integers(2, 120),
    "levels": st.integers(1, 40),  # few: many ties
    "num_groups": st.integers(1, 30),
    "weighted": st.booleans(),
    "double": st.booleans(),  # scores of another type
    "seed": st.integers(0, 10**6),
}


def samples(
    n: int, levels: int, num_groups: int, weighted: bool, double: bool, seed: int
) -> tuple[Array, Array, Array | None, Array]:
    """Logits, labels of both classes, weights of which some are 0, and groups."""
    random = np.random.default_rng(seed)
    logits = (random.integers(0, levels, n) - levels / 3) / 7
    labels = (random.random(n) < 0.3).astype(np.float32)
    labels[:2] = [0, 1]
    weight = (random.integers(0, 4, n) / 3).astype(np.float32)
    weight[:2] = 1
    group = random.integers(-num_groups, num_groups, n) * (2**62 // num_groups)
    return logits.astype(np.float64 if double else np.float32), labels, weight if weighted else None, group


@settings(deadline=None)
@given(**SAMPLES)
def test_metrics_over_all_samples_equal_scikit_learns(**facts: Any) -> None:
    logits, labels, weight, _ = samples(**facts)
    found = LabelMetrics(logits, labels, weight)
    w = np.ones(len(labels)) if weight is None else weight.astype(np.float64)
    expected = average_precision_score(labels, logits, sample_weight=w)
    assert found.value("pr_auc") == pytest.approx(expected, **EXACT)
    assert found.value("auc") == pytest.approx(roc_auc_score(labels, logits, sample_weight=w), **EXACT)
    predicted = 1 / (1 + np.exp(-logits.astype(np.float64)))
    rate = np.full(len(labels), (w * labels).sum() / w.sum())
    entropy = log_loss(labels, rate, sample_weight=w)
    losses = np.logaddexp(0.0, logits.astype(np.float64)) - logits.astype(np.float64) * labels
    assert found.value("logloss") == pytest.approx(np.average(losses, weights=w), **EXACT)
    assert found.value("ne") == pytest.approx(log_loss(labels, predicted, sample_weight=w) / entropy, **EXACT)
    expected = (w * predicted).sum() / (w * labels).sum()
    assert found.value("calibration") == pytest.approx(expected, **EXACT)


@settings(deadline=None)
@given(**SAMPLES)
def test_grouped_auc_is_the_mean_over_groups_of_both_classes(**facts: Any) -> None:
    logits, labels, weight, group = samples(**facts)
    w = np.ones(len(labels)) if weight is None else weight.astype(np.float64)
    names = ("gauc", "gauc@groups", "gauc@positives")
    found = LabelMetrics(logits, labels, weight, number_groups(group), names)
    aucs, by_samples, by_positives, skipped = [], [], [], 0
    for g in np.unique(group[w > 0]):
        mine = (group == g) & (w > 0)
        if len(np.unique(labels[mine])) < 2:
            skipped += 1
            continue
        aucs.append(roc_auc_score(labels[mine], logits[mine], sample_weight=w[mine]))
        by_samples.append(w[mine].sum())
        by_positives.append((w * labels)[mine].sum())
    assert found.skipped_groups("gauc") == skipped
    for name, weights in zip(names, (by_samples, np.ones(len(aucs)), by_positives), strict=True):
        if aucs:
            assert found.value(name) == pytest.approx(np.average(aucs, weights=weights), **EXACT)
        else:
            with pytest.raises(UndefinedError, match=f"none of {skipped} groups has labels of 0 and of 1"):
                found.value(name)


def expected_top(logits: Array, labels: Array, k: int) -> tuple[float, float]:
    """Recall and NDCG at k of one group, by looking at every order of its equal scores."""
    orders = {
        order for order in permutations(range(len(labels))) if (np.diff(logits[list(order)]) <= 0).all()
    }
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, int(labels.sum()))))
    recalls, gains = [], []
    for order in orders:
        top = labels[list(order)][:k]
        recalls.append(top.sum() / labels.sum())
        gains.append(sum(label / math.log2(rank + 2) for rank, label in enumerate(top)) / ideal)
    return float(np.mean(recalls)), float(np.mean(gains))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=5), max_size=4),
    st.sampled_from([1, 2, 3, 7, 2**31 - 1]),
    st.integers(0, 10**6),
)
def test_the_first_k_of_groups_are_the_mean_over_all_orders_of_ties(
    groups: list[list[tuple[int, bool, bool]]], k: int, seed: int
) -> None:
    flat = [
        (score, label, counts, 3 * g - 5) for g, group in enumerate(groups) for score, label, counts in group
    ]
    np.random.default_rng(seed).shuffle(flat)
    columns = np.array(flat, np.float64).reshape(-1, 4)
    logits, labels = columns[:, 0].astype(np.float32), columns[:, 1].astype(np.float32)
    weight = np.where(columns[:, 2] == 1, 2.5, 0.0)  # of any size: only 0 counts
    names = (f"recall@{k}", f"ndcg@{k}")
    found = LabelMetrics(logits, labels, weight, number_groups(columns[:, 3].astype(np.int64)), names)
    expected, skipped = [], 0
    for group in groups:
        kept = [(score, label) for score, label, counts in group if counts]
        if any(label for _, label in kept):
            expected.append(expected_top(*np.array(kept, np.float64).T, k))
        else:
            skipped += bool(kept)
    for i, name in enumerate(names):
        if expected:
            assert found.value(name) == pytest.approx(np.mean([e[i] for e in expected]), **EXACT)
            assert found.skipped_groups(name) == skipped
        else:
            with pytest.raises(UndefinedError):
                found.value(name)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 90), st.integers(1, 20), st.integers(1, 100))
def test_ndcg_of_a_group_equals_scikit_learns(seed: int, n: int, levels: int, k: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = (
        random.integers(0, levels, n).astype(np.float32),
        random.integers(0, 2, n).astype(np.float32),
    )
    labels[0] = 1
    found = LabelMetrics(logits, labels, None, number_groups(np.zeros(n, np.int64)), [f"ndcg@{k}"])
    assert found.value(f"ndcg@{k}") == pytest.approx(ndcg_score([labels], [logits], k=k), **EXACT)


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        ("ne", [0, 0, 0], "all labels are 0"),
        ("auc", [1, 1, 1], "all labels are 1, it needs negatives"),
        ("pr_auc", [0, 0, 0], "all labels are 0"),
        ("calibration", [0, 0, 0], "all labels are 0"),
        ("gauc", [0, 0, 1], "none of 2 groups has labels of 0 and of 1"),
        ("recall@3", [0, 0, 0], "none of 2 groups has a label of 1"),
        ("ndcg@3", [2, 0, 0], "neither 0 nor 1"),
    ],
)
def test_what_is_not_defined_says_why(name: str, labels: list[float], reason: str) -> None:
    group = number_groups(np.array([5, 5, 9], np.int64))
    found = LabelMetrics(np.arange(3.0), np.array(labels), None, group, [name])
    with pytest.raises(UndefinedError, match=reason):
        found.value(name)


def test_scores_that_float32_would_round_keep_their_order() -> None:
    scores = 1.0 + np.arange(6) * 1e-12
    assert auc(scores, np.array([0, 0, 0, 1, 1, 1])) == 1.0
    assert auc(-scores, np.array([0, 0, 0, 1, 1, 1])) == 0.0
    assert (
        auc(np.array([-0.0, 0.0]), np.array([0, 1]))
        == auc(np.array([-0.0, 0.0], np.float32), np.array([0, 1]))
        == 0.5
    )
    assert auc(np.array([3, 1, 2]), np.array([1, 0, 0])) == 1.0


def test_the_number_of_threads_changes_no_bit() -> None:
    random = np.random.default_rng(0)
    n = 250_000
    logits, labels = random.normal(size=n).astype(np.float32), random.integers(0, 2, n).astype(np.float32)
    weight, group = random.random(n).astype(np.float32), number_groups(random.integers(0, 20_000, n))
    names, before = ("auc", "pr_auc", "gauc", "gauc@positives", "recall@2", "ndcg@2"), torch.get_num_threads()
    try:
        values = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = LabelMetrics(logits, labels, weight, group, names)
            values.append([found.value(name) for name in names])
    finally:
        torch.set_num_threads(before)
    assert values[0] == values[1]
    # And of two classes that don't depend on the logits, in groups of a dozen:
    assert values[0][0] == pytest.approx(0.5, abs=0.005)
