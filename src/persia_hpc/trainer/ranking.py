"""Ranks a whole catalogue for each query, exactly, and computes recall, NDCG and hit rate from the ranks.

A score is the inner product of two float32 vectors, summed in float64 in the order of the columns. Products
of float32 matrices decide where their rounding can't matter, so most items cost no more than that.

N items, B queries, W width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from persia_hpc._native import mix
from persia_hpc.arrays import Array
from persia_hpc.config.metric_names import top_of
from persia_hpc.errors import UserError

from .label_metrics import UndefinedError

SCORES = 1 << 22  # at a time
PAIRS = 1 << 18  # whose scores are summed exactly at a time
UNKNOWN = -1  # instead of a rank: the catalogue doesn't have the item
NOT_FINITE = -2  # a vector isn't finite


class ItemVectors:
    """Holds the vectors of all items of a catalogue, equal ones once: items that never were trained have one.

    Shapes: ids uint64 [N]; vectors float32 [N, W].
    """

    def __init__(self, ids: Array, vectors: Array, device: torch.device | str = "cpu") -> None:
        """device: where matrices are multiplied."""
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        first, self._vector_of, self._times = _distinct(vectors[order])
        self._vectors = vectors[order[first]]
        self._repeated = np.flatnonzero(self._times > 1)
        self._on_device = torch.from_numpy(self._vectors).to(device)
        norms = np.sqrt(np.einsum("nw,nw->n", self._vectors, self._vectors, dtype=np.float64))
        self._largest = float(norms.max(initial=0.0))

    def ranks(
        self,
        queries: Array,
        targets: Array,
        excluded: Array | None = None,
        offsets: Array | None = None,
    ) -> Array:
        """Returns how many other items have a larger score than each query's target, and how many the same.

        excluded, offsets: for each query items that aren't counted.

        Shapes: queries float32 [B, W]; targets uint64 [B]; excluded uint64 [E]; offsets uint32 [B+1]; the
        result is int64 [B, 2], [UNKNOWN, 0] for a target that isn't there, [NOT_FINITE, 0] for a query that
        has no finite scores.
        Raises UserError for queries of another width.
        """
        if queries.shape[1] != self._vectors.shape[1]:
            raise UserError(
                f"the model's queries have width {queries.shape[1]}, its items {self._vectors.shape[1]}: "
                "expected the same, as their inner product is the score"
            )
        places = self._find(targets)
        norms = np.sqrt(np.einsum("bw,bw->b", queries, queries, dtype=np.float64))
        finite = norms * self._largest < np.finfo(np.float32).max / 4  # False for NaN
        ranks = np.zeros((len(queries), 2), np.int64)
        ranks[places < 0] = UNKNOWN, 0
        ranks[~finite] = NOT_FINITE, 0
        used = np.flatnonzero(finite & (places >= 0))
        if len(used):
            ranks[used] = self._count(queries[used], places[used], norms[used])
            if excluded is not None and offsets is not None:
                ranks -= self._count_excluded(queries, places, finite, excluded, offsets)
        return ranks

    def _find(self, ids: Array) -> Array:
        """Returns the place of each item, -1 if there is none."""
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        found: Array = np.where(self._ids[places] == ids, places, -1)
        return found

    def _count(self, queries: Array, places: Array, norms: Array) -> Array:
        """Counts items with larger and with equal scores, but for the target itself."""
        own = _exact(queries, self._vectors[self._vector_of[places]])
        counts = np.zeros((len(queries), 2), np.int64)
        # At most so much does rounding change a sum of W products, and the score that it is compared with.
        margin = 2.0**-23 * (queries.shape[1] + 8) * norms * self._largest + 1e-36
        device = self._on_device.device
        low, high = (
            torch.from_numpy((own + m).astype(np.float32)).to(device)[:, None] for m in (-margin, margin)
        )
        left = torch.from_numpy(queries).to(device)
        size = max(1, SCORES // len(queries))
        with _full_precision():
            for begin in range(0, len(self._vectors), size):
                scores = left @ self._on_device[begin : begin + size].T
                larger = scores > high
                counts[:, 0] += larger.sum(dim=1).cpu().numpy()
                repeated = self._repeated[slice(*np.searchsorted(self._repeated, (begin, begin + size)))]
                if len(repeated):
                    them = larger[:, torch.from_numpy(repeated - begin).to(device)].cpu().numpy()
                    counts[:, 0] += them.astype(np.int64) @ (self._times[repeated] - 1)
                close = ((scores >= low) & ~larger).nonzero().cpu().numpy()
                vectors = close[:, 1] + begin
                counts += self._compare(queries, own, close[:, 0], vectors, self._times[vectors])
        counts[:, 1] -= 1  # the target itself, whose score is its own
        return counts

    def _compare(self, queries: Array, own: Array, rows: Array, vectors: Array, times: Array) -> Array:
        """Counts vectors whose exact scores are larger than the targets', or the same, `times` each.

        Shapes: rows, of queries, and vectors [n]; times int64 [n]; returns int64 [B, 2].
        """
        counts = np.zeros((len(queries), 2), np.int64)
        for begin in range(0, len(rows), PAIRS):
            part = slice(begin, begin + PAIRS)
            row = rows[part]
            scores = _exact(queries[row], self._vectors[vectors[part]])
            for column, counted in enumerate((scores > own[row], scores == own[row])):
                found = np.bincount(row[counted], times[part][counted], minlength=len(queries))
                counts[:, column] += found.astype(np.int64)
        return counts

    def _count_excluded(
        self, queries: Array, places: Array, finite: Array, excluded: Array, offsets: Array
    ) -> Array:
        """Counts the excluded items among those that `_count` has counted."""
        lengths: Array = np.diff(offsets.astype(np.int64))
        rows = np.repeat(np.arange(len(queries)), lengths)
        items = self._find(excluded)
        counted = (items >= 0) & finite[rows] & (places[rows] >= 0) & (items != places[rows])
        pairs = np.unique(rows[counted] * len(self._ids) + items[counted])  # each once
        rows, items = np.divmod(pairs, len(self._ids))
        own = np.zeros(len(queries))
        there = finite & (places >= 0)
        own[there] = _exact(queries[there], self._vectors[self._vector_of[places[there]]])
        return self._compare(queries, own, rows, self._vector_of[items], np.ones(len(items), np.int64))


def _distinct(vectors: Array) -> tuple[Array, Array, Array]:
    """Finds equal vectors.

    Shapes: vectors float32 [N, W]; returns int64 arrays: a place of each distinct vector [U], which of these
    each vector is [N], and how many are equal to it [U].
    """
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    keys = np.zeros(len(bits), np.uint64)
    for column in bits.T:
        keys = mix(keys ^ column)
    _, first, which, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    for begin in range(0, len(bits), PAIRS):
        part = slice(begin, begin + PAIRS)
        if not np.array_equal(bits[part], bits[first[which[part]]]):  # two vectors have one key
            each = np.arange(len(bits))
            return each, each, np.ones(len(bits), np.int64)
    return first, which.reshape(-1), times


def _exact(left: Array, right: Array) -> Array:
    """Returns the inner products of rows in float64, the same whatever other rows there are.

    Shapes: [n, W] each, in; [n] out.
    """
    total = np.zeros(len(left))
    for a, b in zip(left.T, right.T, strict=True):
        total += a.astype(np.float64) * b
    return total


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Lets matrices be multiplied as float32, whatever `train.matmul_precision` says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def ranked_metric(name: str, ranks: Array, weight: Array | None) -> float:
    """Returns `recall@K`, `hr@K` or `ndcg@K`: means over queries with one right item each.

    The right item stands at a random place among those of the same score. One that the catalogue doesn't have
    is never found.

    Shapes: ranks int64 [n, 2], as `ItemVectors.ranks` returns them; weight [n] or None.
    Raises UndefinedError without queries, weights or finite scores.
    """
    top = top_of(name)
    assert top is not None
    kind, k = top
    bad = int((ranks[:, 0] == NOT_FINITE).sum())
    if not len(ranks):
        raise UndefinedError("no sample has a label of 1")
    if weight is not None and not weight.any():
        raise UndefinedError("all weights are 0")
    if bad:
        raise UndefinedError(f"the model's vectors aren't finite for {bad} of {len(ranks)} samples")
    larger, places = ranks[:, 0], ranks[:, 1] + 1  # that it may stand at
    first = np.where(larger == UNKNOWN, k, np.minimum(larger, k))
    last = np.where(larger == UNKNOWN, k, np.minimum(larger + places, k))
    gains = 1.0 / np.log2(np.arange(k) + 2.0) if kind == "ndcg" else np.ones(k)
    until = np.concatenate([[0.0], np.cumsum(gains)])
    values = (until[last] - until[first]) / places
    return float(np.average(values, weights=weight))
