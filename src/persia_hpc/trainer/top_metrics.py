"""Computes Recall@K and NDCG@K where the ranks of relevant items are known, as in full-ranking retrieval."""

from __future__ import annotations

import numpy as np

from persia_hpc.arrays import Array


def top_means(ranks: Array, offsets: Array, k: int) -> tuple[float, float, int]:
    """Returns the mean recall and NDCG of the first k over queries, and how many queries have no item.

    The recall of a query is the share of its relevant items that are among its first k. Its NDCG is the sum
    of 1 / log2(rank + 1) over them, divided by the largest possible one. Queries without a relevant item
    have neither, and are left out; without any other both means are 0. They are those of
    `_native.rank_metrics`, which finds the ranks within groups by itself.

    Shapes: ranks int [N], from 1, of the relevant items of all queries, more than k for those not found;
    offsets int [Q+1], those of query q are ranks[offsets[q]:offsets[q + 1]].
    """
    lengths = np.diff(offsets)
    found = ranks <= k
    gains = np.where(found, 1.0 / np.log2(ranks + 1.0), 0.0)
    query = np.repeat(np.arange(len(lengths)), lengths)
    hits = np.bincount(query, found, len(lengths))
    gain = np.bincount(query, gains, len(lengths))
    most = int(min(k, lengths.max(initial=0)))
    best = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(most) + 2.0))])
    kept = lengths > 0
    if not kept.any():
        return 0.0, 0.0, len(lengths)
    recall = hits[kept] / lengths[kept]
    ndcg = gain[kept] / best[np.minimum(lengths[kept], most)]
    return float(recall.mean()), float(ndcg.mean()), int((~kept).sum())
