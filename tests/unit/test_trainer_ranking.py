"""Ranks of a whole catalogue, and metrics from them, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.trainer import ranking
from persia_hpc.trainer.label_metrics import UndefinedError
from persia_hpc.trainer.ranking import NOT_FINITE, UNKNOWN, ItemVectors, ranked_metric


def score(query: np.ndarray, item: np.ndarray) -> float:
    """The inner product from its definition, one column at a time."""
    total = 0.0
    for a, b in zip(query.tolist(), item.tolist(), strict=True):
        total += a * b
    return total


def brute_force(
    ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, target: int, excluded: set[int]
) -> tuple[int, int]:
    scores = {int(i): score(query, v) for i, v in zip(ids, vectors, strict=True)}
    if target not in scores:
        return UNKNOWN, 0
    others = [s for i, s in scores.items() if i != target and i not in excluded]
    return sum(s > scores[target] for s in others), sum(s == scores[target] for s in others)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 7, 64, 1 << 22]))
def test_ranks_are_those_of_brute_force(seed: int, num_items: int, width: int, scores: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.choice(1 << 40, num_items, replace=False).astype(np.uint64)
    # Few values, so that many scores tie; and close ones, that float32 products can't tell apart.
    vectors = rng.integers(-2, 3, (num_items, width)).astype(np.float32)
    if seed % 2:
        vectors = np.float32(0.1) * vectors + rng.integers(0, 2, vectors.shape).astype(
            np.float32
        ) * np.float32(1e-8)
    queries = (np.float32(0.3) * rng.integers(-2, 3, (6, width))).astype(np.float32)
    targets = np.append(rng.choice(ids, 5), np.uint64(1 << 41))
    bags = [rng.choice(np.append(ids, np.uint64(5)), rng.integers(0, 9)) for _ in queries]
    offsets = np.cumsum([0, *map(len, bags)]).astype(np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SCORES", scores)
        patch.setattr(ranking, "PAIRS", 5)
        items = ItemVectors(ids, vectors)
        for excluded in (None, bags):
            got = items.ranks(
                queries, targets, *([] if excluded is None else [np.concatenate(bags), offsets])
            )
            for i in range(6):
                out = set() if excluded is None else set(map(int, bags[i]))
                assert tuple(got[i]) == brute_force(ids, vectors, queries[i], int(targets[i]), out)


def test_close_scores_are_told_apart_that_float32_confuses() -> None:
    vectors = np.array([[1.0, 1e-9], [1.0, 2e-9], [1.0, 0.0]], np.float32)
    query = np.ones((1, 2), np.float32)
    assert len(set((query @ vectors.T)[0].tolist())) == 1
    items = ItemVectors(np.arange(3, dtype=np.uint64), vectors)
    ranks = [items.ranks(query, np.array([i], np.uint64))[0].tolist() for i in range(3)]
    assert ranks == [[1, 0], [0, 0], [2, 0]]


def test_the_precision_of_matrices_is_left_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        test_close_scores_are_told_apart_that_float32_confuses()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_vectors_that_are_not_finite_give_no_rank(bad: float) -> None:
    vectors = np.ones((4, 2), np.float32)
    ids = np.arange(4, dtype=np.uint64)
    queries = np.ones((2, 2), np.float32)
    queries[1, 0] = bad
    vectors[0, 0] = 1e10
    got = ItemVectors(ids, vectors).ranks(queries, np.array([0, 1], np.uint64))
    assert got[:, 0].tolist() == [0, NOT_FINITE]
    with pytest.raises(UndefinedError, match="1 of 2"):
        ranked_metric("recall@1", got, None)
    if not np.isfinite(bad):
        vectors[3, 1] = bad
        got = ItemVectors(ids, vectors).ranks(np.ones((2, 2), np.float32), np.array([0, 1], np.uint64))
        assert got[:, 0].tolist() == [NOT_FINITE, NOT_FINITE]


def test_queries_of_another_width_are_refused() -> None:
    items = ItemVectors(np.arange(4, dtype=np.uint64), np.ones((4, 2), np.float32))
    with pytest.raises(UserError, match="width 3"):
        items.ranks(np.ones((1, 3), np.float32), np.zeros(1, np.uint64))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 12), st.integers(0, 4), st.sampled_from([0.5, 1.0, 2.0])), min_size=1),
    st.integers(1, 9),
    st.booleans(),
)
def test_metrics_are_means_over_the_orders_of_ties(
    rows: list[tuple[int, int, float]], k: int, weighted: bool
) -> None:
    ranks = np.array([(larger, 0 if larger < 0 else same) for larger, same, _ in rows])
    weight = np.array([w for *_, w in rows], np.float32) if weighted else None
    hits, gains = [], []
    for larger, same in ranks:
        places = [larger + i + 1 for i in range(same + 1)] if larger >= 0 else [10**9]
        hits.append(np.mean([place <= k for place in places]))
        gains.append(np.mean([1 / np.log2(place + 1) if place <= k else 0.0 for place in places]))
    for name, values in ((f"recall@{k}", hits), (f"hr@{k}", hits), (f"ndcg@{k}", gains)):
        assert ranked_metric(name, ranks, weight) == pytest.approx(
            np.average(values, weights=weight), abs=1e-12
        )


def test_a_metric_without_samples_or_weights_is_not_defined() -> None:
    with pytest.raises(UndefinedError, match="label of 1"):
        ranked_metric("recall@1", np.empty((0, 2), np.int64), None)
    with pytest.raises(UndefinedError, match="weights"):
        ranked_metric("recall@1", np.zeros((2, 2), np.int64), np.zeros(2, np.float32))


def test_equal_vectors_are_kept_once_and_others_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.integers(0, 2, (60, 3)).astype(np.float32)
    queries, targets = rng.normal(size=(9, 3)).astype(np.float32), np.arange(9, dtype=np.uint64)
    items = ItemVectors(np.arange(60, dtype=np.uint64), vectors)
    assert len(items._vectors) == len(np.unique(vectors, axis=0))
    monkeypatch.setattr(ranking, "mix", np.zeros_like)  # all have one key
    confused = ItemVectors(np.arange(60, dtype=np.uint64), vectors)
    assert len(confused._vectors) == 60
    assert np.array_equal(items.ranks(queries, targets), confused.ranks(queries, targets))
