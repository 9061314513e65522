"""Weights of ids: checked in files, kept with their ids by all that reads, shuffles, cuts and hashes them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc.config import HashConfig, load_config
from persia_hpc.embedding_worker.engine import EmbeddingWorker, hash_column, keep_last, shares_of_weights
from persia_hpc.errors import DataError, UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.identity import sample_ranges
from persia_hpc.samples.reader import BatchReader
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.validity import InvalidRowError
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs
from persia_hpc.trainer.pooling.embed import Pooling

SCHEMA = DatasetSchema(
    (FeatureSchema("user"), FeatureSchema("tags", True, weighted=True), FeatureSchema("plain", True))
)
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def column_of(lengths: list[int]) -> IdColumn:
    """Ids that differ, each with a weight that tells them."""
    values = np.arange(sum(lengths), dtype=np.uint64) + np.uint64(3)
    return IdColumn.from_lengths(values, np.array(lengths), weights_of(values))


def weights_of(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32) * np.float32(0.25)) - 1


def samples(lengths: list[int]) -> SampleBatch:
    column = column_of(lengths)
    return SampleBatch(
        {
            "user": IdColumn(np.arange(len(lengths), dtype=np.uint64)),
            "tags": column,
            "plain": IdColumn(column.values, column.offsets),
        },
        np.zeros((len(lengths), 0), np.float32),
        np.ones((len(lengths), 1), np.float32),
    )


def write(path: Path, lengths: list[int], schema: DatasetSchema = SCHEMA) -> str:
    with DatasetWriter(path, schema, chunk_rows=8) as writer:
        writer.write(samples(lengths))
    return str(path)


def own(column: IdColumn) -> bool:
    return column.weights is not None and np.array_equal(column.weights, weights_of(column.values))


@given(lengths=LENGTHS, data=st.data())
def test_weights_go_with_their_ids(lengths: list[int], data: st.DataObject) -> None:
    column = column_of(lengths)
    begin = data.draw(st.integers(0, len(lengths)))
    cut = column.slice(begin, data.draw(st.integers(begin, len(lengths))))
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1))), np.int64)
    most = data.draw(st.integers(1, 4))
    last = keep_last(column, most)
    assert own(cut)
    assert own(column.take(rows))
    assert own(last)
    assert last.offsets is not None
    for b, n in enumerate(lengths):  # the last of each sample
        kept = last.values[last.offsets[b] : last.offsets[b + 1]]
        assert column.offsets is not None
        bag = column.values[column.offsets[b] : column.offsets[b + 1]]
        assert np.array_equal(kept, bag[max(0, n - most) :])
    hashed = hash_column(column, HashConfig(100, 3))
    assert hashed.weights is not None
    assert np.array_equal(hashed.weights.reshape(-1, 3), np.stack([column.weights] * 3, 1))


@pytest.mark.parametrize("shuffle", [False, True])
def test_files_keep_weights_and_readers_shuffle_them_with_their_ids(tmp_path: Path, shuffle: bool) -> None:
    rng = np.random.default_rng(1)
    files = [write(tmp_path / f"{i}.h5", rng.integers(0, 4, 50).tolist()) for i in range(2)]
    source = open_source(files)
    assert source.schema.feature("tags").weighted
    assert not source.schema.feature("plain").weighted
    reader = BatchReader(source, block_rows=8, buffer_blocks=3, seed=1, shuffle=shuffle)
    seen = []
    for begin in range(0, 100, 7):
        batch = reader.read(0, begin, min(begin + 7, 100))
        batch.validate(source.schema)
        assert own(batch.ids["tags"])
        assert batch.ids["plain"].weights is None
        seen += batch.ids["tags"].values.tolist()
    both = np.concatenate([source.read(0, 50).ids["tags"].values, source.read(50, 100).ids["tags"].values])
    assert sorted(seen) == sorted(both.tolist())
    assert (seen == both.tolist()) != shuffle


def test_other_weights_are_other_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [2, 1, 3])
    before = sample_ranges(open_source([path]))
    with h5py.File(path, "r+") as file:
        file["ids/tags/weights"][1] += 1
    after = sample_ranges(open_source([path]))
    assert [r.digest for r in before] != [r.digest for r in after]


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [2, 1, 3])
    with h5py.File(path, "r+") as file:
        file["ids/tags/weights"][3] = np.inf
    with pytest.raises(DataError, match=r"a.h5: row 2: got weight inf of an id of 'tags'"):
        open_source([path]).read(0, 3)
    for bad, message in (
        (np.ones(5, np.float32), "/ids/tags/weights: got 5 weights, expected 6"),
        (np.ones((6, 1), np.float32), r"/ids/tags/weights: got float32 of shape \(6, 1\), expected numbers"),
        (np.array([b"x"] * 6), "/ids/tags/weights: got |S1 .*expected numbers"),
    ):
        with h5py.File(path, "r+") as file:
            del file["ids/tags/weights"]
            file["ids/tags/weights"] = bad
        with pytest.raises(UserError, match=message):
            open_source([path])
    plain = dataclasses.replace(
        SCHEMA, features=(FeatureSchema("user"), FeatureSchema("tags", True), FeatureSchema("plain", True))
    )
    batch = samples([2, 1, 3])
    tags = IdColumn(batch.ids["tags"].values, batch.ids["tags"].offsets)
    with DatasetWriter(tmp_path / "b.h5", plain) as writer:
        writer.write(dataclasses.replace(batch, ids={**batch.ids, "tags": tags}))
    good = write(tmp_path / "c.h5", [1])
    with pytest.raises(UserError, match="got multi-hot feature 'tags', but it is weighted multi-hot in"):
        open_source([good, str(tmp_path / "b.h5")])


def test_bad_batches_are_refused_when_written(tmp_path: Path) -> None:
    batch = samples([2, 1, 3])
    tags = batch.ids["tags"]
    assert tags.weights is not None
    nan = np.where(np.arange(6) == 2, np.float32(np.nan), tags.weights)
    for weights, error, message in (
        (nan, InvalidRowError, "row 4: got weight nan of an id of 'tags', expected a finite number"),
        (tags.weights[:5], UserError, "weights of tags: got 5 for 6 ids"),
        (tags.weights.astype(np.float64), UserError, "weights of tags: got float64"),
        (None, UserError, r"tags \(multi-hot\), tags \(weighted multi-hot\) on one side only"),
    ):
        column = IdColumn(tags.values, tags.offsets, weights)
        with DatasetWriter(tmp_path / "a.h5", SCHEMA) as writer:
            writer.write(batch)
            with pytest.raises(error, match=message):
                writer.write(dataclasses.replace(batch, ids={**batch.ids, "tags": column}))
    with pytest.raises(UserError, match="weights of the one-hot feature 'a'"):
        DatasetSchema((FeatureSchema("a", weighted=True),)).validate()


def layout_for(**features: Any) -> Any:
    config = load_config({"data": {"train": ["a"]}, "model": {"class": "tower"}, "features": features})
    return make_layout(config, SCHEMA)


@pytest.mark.parametrize("pooling", ["sqrtn", "sequence"])
def test_poolings_that_cannot_use_weights_are_refused(pooling: str) -> None:
    with pytest.raises(UserError, match=rf'tags\] has pooling = "{pooling}", which can.t use the weights'):
        layout_for(tags={"pooling": pooling, "max_length": 3})


@pytest.mark.parametrize("pooling", ["sum", "mean", "jagged"])
def test_a_worker_sends_what_rows_are_multiplied_by(pooling: str) -> None:
    worker = EmbeddingWorker(layout_for(tags={"pooling": pooling, "max_length": 2}))
    keyed = worker.prepare(samples([3, 0, 1]), step=1, trainer=0, num_global=3)
    kept = weights_of(np.array([4, 5, 6]))
    if pooling == "mean":
        kept = np.concatenate([kept[:2] / kept[:2].sum(), [1.0]])
    np.testing.assert_allclose(keyed.id_weights["tags"], kept, rtol=1e-6)
    assert list(keyed.id_weights) == ["tags"]
    assert keyed.id_weights["tags"].dtype == np.float32


@given(
    lengths=LENGTHS,
    weights=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]), min_size=60, max_size=60),
)
def test_shares_add_up_to_one_or_are_zeros(lengths: list[int], weights: list[float]) -> None:
    given_ = np.array(weights[: sum(lengths)], np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    shares = shares_of_weights(given_, offsets)
    for begin, end in pairwise(offsets):
        total = sum(given_[begin:end].tolist())
        expected = given_[begin:end] / total if total else np.zeros(end - begin)
        np.testing.assert_allclose(shares[begin:end], expected, rtol=1e-6)


def test_a_transform_must_keep_weights() -> None:
    worker = EmbeddingWorker(layout_for(tags={"pooling": "sum"}))
    batch = samples([2, 1])
    bare = IdColumn(batch.ids["tags"].values, batch.ids["tags"].offsets)
    for ids, message in (
        ({**batch.ids, "tags": bare}, "returned none of the weights of 'tags', expected one for each id"),
        ({**batch.ids, "plain": batch.ids["tags"]}, "returned some of the weights of 'plain', expected none"),
    ):
        worker.transform = lambda b, seed, step, ids=ids: dataclasses.replace(b, ids=ids)  # type: ignore[misc]
        with pytest.raises(UserError, match=message):
            worker.prepare(batch, step=1, trainer=0, num_global=2)


@pytest.mark.parametrize("pooling", ["sum", "mean", "jagged"])
def test_a_hashed_id_has_one_weight_for_all_its_rows(pooling: str) -> None:
    rounds, lengths = 3, [4, 0, 1, 2]
    config = load_config(
        {
            "data": {"train": ["a"]},
            "model": {"class": "tower"},
            "features": {"tags": {"pooling": pooling}},
            "tables": {"tags": {"hash": {"size": 50, "rounds": rounds}}},
        }
    )
    worker = EmbeddingWorker(make_layout(config, SCHEMA))
    batch = samples(lengths)
    keyed = worker.prepare(batch, step=1, trainer=0, num_global=4)
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(len(keyed.dedup.keys), 16)).astype(np.float32)
    whole = worker.assemble(keyed, [rows])
    got, _ = Pooling(make_inputs(worker.layout, SCHEMA)).embed(whole, training=False)
    begin, end = whole.feature_offsets[1:3]
    vectors = rows[whole.indices[begin:end].astype(np.int64)].reshape(-1, rounds, 16).sum(1)
    weights = batch.ids["tags"].weights
    assert weights is not None
    if pooling == "jagged":
        np.testing.assert_allclose(got.jagged["tags"].values.numpy(), vectors, rtol=1e-5)
        np.testing.assert_array_equal(got.jagged["tags"].weights, weights)
        return
    ends = np.cumsum([0, *lengths])
    for b, (first, last) in enumerate(pairwise(ends)):
        total = weights[first:last].sum() if pooling == "mean" and last > first else 1
        expected = (vectors[first:last] * weights[first:last, None]).sum(0) / total
        np.testing.assert_allclose(got.pooled["tags"][b].numpy(), expected, rtol=1e-4, atol=1e-5)
