"""Metrics of known ranks are those that the native ones find from scores in groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import rank_metrics
from persia_hpc.trainer.top_metrics import top_means


@settings(deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=8),
    st.sampled_from([1, 2, 3, 5, 100]),
)
def test_ranks_give_what_their_scores_give(queries: list[list[bool]], k: int) -> None:
    """Each query is its items from the best one on, and whether each is relevant."""
    ranks = [[rank for rank, relevant in enumerate(query, 1) if relevant] for query in queries]
    offsets = np.cumsum([0, *map(len, ranks)])
    recall, ndcg, without = top_means(np.array([r for each in ranks for r in each], np.int64), offsets, k)
    scores = np.array([-float(rank) for query in queries for rank in range(len(query))], np.float32)
    labels = np.array([label for query in queries for label in query], np.float32)
    groups = np.repeat(np.arange(len(queries)), [len(query) for query in queries]).astype(np.uint32)
    found = rank_metrics(scores, labels, None, groups, ks=[k], threads=1)
    assert (recall, ndcg) == pytest.approx(found["top"][0], rel=1e-12, abs=1e-12)
    assert without == found["num_without_positive"]


def test_items_that_were_not_found_count_as_missed() -> None:
    far = np.iinfo(np.int64).max // 2
    recall, ndcg, without = top_means(np.array([1, far, far]), np.array([0, 2, 3, 3]), 10)
    assert (recall, without) == (0.25, 1)
    assert ndcg == pytest.approx((1 / (1 + 1 / np.log2(3)) + 0) / 2)
    assert top_means(np.empty(0, np.int64), np.zeros(1, np.int64), 3) == (0.0, 0.0, 0)
