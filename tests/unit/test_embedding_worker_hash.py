"""Hash compression: the indices, their distribution, and columns and batches made with them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc._native import hash_ids
from persia_hpc.config import HashConfig, load_config
from persia_hpc.embedding_worker.engine import hash_column
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import FeatureSpec, Inputs
from persia_hpc.trainer.pooling.embed import Pooling
from tests.support.hashing import hashed
from tests.support.row_batches import make_row_batch

KERNELS = ("native", "cuda", "torch")

U64 = (1 << 64) - 1


@given(st.lists(st.integers(0, U64), max_size=20), st.integers(1, 16), st.integers(1, 1 << 48))
def test_indices_are_those_of_the_definition(ids, rounds, size):
    got = hash_ids(np.array(ids, np.uint64), rounds=rounds, size=size)
    assert got.tolist() == [index for i in ids for index in hashed(i, rounds, size)]
    assert all(index // size == i % rounds for i, index in enumerate(got.tolist()))


@pytest.mark.parametrize("stride", [1, 64, 1 << 20, 0x9E3779B97F4A7C15])
def test_regular_ids_spread_evenly_and_rounds_are_independent(stride):
    count, size = 200_000, 1000
    ids = np.arange(count, dtype=np.uint64) * np.uint64(stride)
    first, second = hash_ids(ids, rounds=2, size=size).reshape(-1, 2).T
    for indices in (first, second - size):
        counts = np.bincount(indices.astype(np.int64), minlength=size)
        chi_squared = ((counts - count / size) ** 2).sum() * size / count
        assert abs(chi_squared - size) < 6 * (2 * size) ** 0.5
    # Pairs of indices fall into the size^2 cells like balls: as many distinct ones as chance gives.
    cells = size * size
    expected = cells * (1 - (1 - 1 / cells) ** count)
    distinct = len(np.unique(first * np.uint64(size) + second - np.uint64(size)))
    assert abs(distinct - expected) < 6 * expected**0.5


def test_a_hashed_column_has_the_rows_of_each_id_in_its_place():
    ids = np.array([5, 9, 5], np.uint64)
    one_hot = hash_column(IdColumn(ids), HashConfig(100, 3))
    assert one_hot.offsets.tolist() == [0, 3, 6, 9]
    assert one_hot.values.tolist() == [*hashed(5, 3, 100), *hashed(9, 3, 100), *hashed(5, 3, 100)]
    multi = hash_column(IdColumn(ids, np.array([0, 2, 2, 3], np.uint32)), HashConfig(100, 2))
    assert multi.offsets.tolist() == [0, 4, 4, 6]
    assert multi.offsets.dtype == np.uint32
    assert hash_column(IdColumn(ids), HashConfig(100, 1)).offsets is None


@pytest.mark.parametrize("rounds", [1, 3])
def test_each_row_of_an_id_has_the_weight_of_the_id(rounds):
    weights = np.array([0.5, -2.0, 3.0], np.float32)
    column = IdColumn(np.array([5, 9, 5], np.uint64), np.array([0, 2, 2, 3], np.uint32), weights)
    found = hash_column(column, HashConfig(100, rounds))
    assert found.weights is not None
    assert found.weights.tolist() == [weight for weight in weights.tolist() for _ in range(rounds)]
    assert len(found.weights) == len(found.values)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lengths", [[2, 0, 1, 3], [0, 0, 0, 0]])
def test_pooling_counts_ids_and_not_their_rows(kernel, lengths):
    """Against explicit sums: mean and sqrtn divide by the ids, a sequence has one vector an id."""
    rounds, rng = 3, np.random.default_rng(4)
    kinds = ("sum", "mean", "sqrtn", "sequence", "jagged")
    inputs = Inputs(tuple(FeatureSpec(k, k, 0, 4, k, True, rounds) for k in kinds), 2, ("label",))
    bags = [rng.integers(0, 12, length * rounds).tolist() for length in lengths]
    row_batch = make_row_batch(inputs, dict.fromkeys(kinds, bags), rng)
    batch, gradients = Pooling(inputs, kernel=kernel).embed(row_batch, training=True)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) * rounds)])
    for f, kind in enumerate(kinds):
        rows = torch.from_numpy(row_batch.rows[0][row_batch.indices.astype(np.int64)])
        own = rows[int(row_batch.feature_offsets[f]) : int(row_batch.feature_offsets[f + 1])]
        vectors = [own[a:b].reshape(-1, rounds, 4).sum(1) for a, b in pairwise(offsets)]
        if kind == "jagged":
            jagged = batch.jagged[kind]
            torch.testing.assert_close(jagged.values.detach(), torch.cat(vectors))
            assert (jagged.lengths.tolist(), jagged.longest) == (lengths, max(1, *lengths))
        elif kind == "sequence":
            values, mask = batch.sequence[kind]
            assert values.shape == (4, max(1, *lengths), 4)
            assert mask.sum(1).tolist() == lengths
            for got, expected in zip(values.detach(), vectors, strict=True):
                torch.testing.assert_close(got[: len(expected)], expected)
        else:
            power = {"sum": 0.0, "mean": 1.0, "sqrtn": 0.5}[kind]
            expected = torch.stack([v.sum(0) / max(len(v), 1) ** power for v in vectors])
            torch.testing.assert_close(batch.pooled[kind].detach(), expected)
            torch.testing.assert_close(batch.stacked()[:, f].detach(), expected)
    total = batch.pooled["mean"].sum() + batch.sequence["sequence"][0].sum()
    total = total + batch.jagged["jagged"].values.sum()
    total.backward()
    per_element = sum((1 / n + 2) * n for n in lengths if n)
    assert gradients.arrays()[0].sum() == pytest.approx(per_element * rounds * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"size": 0}, ["tables.a.hash.size = 0", "from 1"]),
        ({"size": 10, "rounds": 0}, ["tables.a.hash.rounds = 0", "from 1 to 16"]),
        ({"rounds": 2}, ["tables.a.hash.size is missing"]),
        ({"size": 10, "round": 2}, ["hash.round is not a known key", "'rounds'"]),
        (10, ["tables.a.hash = 10", "expected a table"]),
        ({"size": 1.5}, ["hash.size = 1.5", "an integer"]),
    ],
)
def test_bad_settings_are_refused(value, parts):
    with pytest.raises(UserError) as caught:
        load_config({"data": {"train": ["a"]}, "model": {"class": "dlrm"}, "tables": {"a": {"hash": value}}})
    for part in parts:
        assert part in str(caught.value)


def test_a_hashed_table_never_needs_more_than_all_its_rows():
    def layout(hashing, capacity):
        table = {"dim": 4, "capacity": capacity, "hash": hashing}
        config = {"data": {"train": ["a"], "batch_size": 1000}, "model": {"class": "dlrm"}}
        return make_layout(
            load_config({**config, "tables": {"default": table}}), DatasetSchema((FeatureSchema("a"),))
        )

    assert layout({"size": 100}, "20 KiB").features[0].multi
    assert not layout({"size": 100, "rounds": 1}, "20 KiB").features[0].multi
    with pytest.raises(UserError, match="may need 1000;"):
        layout(None, "20 KiB")
    with pytest.raises(UserError, match="may need 2000;"):
        layout({"size": 100_000}, "20 KiB")


@pytest.mark.parametrize(("rounds", "size"), [(0, 5), (5, 0), (4, 1 << 63)])
def test_native_refuses_what_has_no_indices(rounds, size):
    with pytest.raises(ValueError, match="expected both at least 1"):
        hash_ids(np.zeros(1, np.uint64), rounds=rounds, size=size)


def test_native_takes_uint64_only():
    with pytest.raises(ValueError, match="ids: expected a C-contiguous uint64"):
        hash_ids(np.zeros(1, np.int64), rounds=1, size=1)
