"""The catalogue as a split, the shares of its items, and what is drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import mix
from persia_hpc.config import Config, load_config
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.catalogue import Catalogue, Drawing, open_catalogue
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.split_readers import SplitReaders
from persia_hpc.schedule import make_schedules
from tests.support.retrieval import (
    CATALOGUE,
    ITEMS,
    KINDS,
    SCHEMA,
    ids_of,
    retrieval_config,
    write,
    write_retrieval,
)

TRAINED = DatasetSchema(
    (FeatureSchema("user"), FeatureSchema("tags", multi=True, weighted=True), FeatureSchema("item")),
    ("age", "price"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("data")
    return load_config(retrieval_config(write_retrieval(folder), folder / "run"))


def catalogue_of(config: Config) -> Catalogue:
    return open_catalogue(config, SCHEMA, "data.train")


def small(
    items: list[int], weights: list[float] | None = None, **dense: list[float]
) -> tuple[DatasetSchema, SampleBatch]:
    schema = DatasetSchema((FeatureSchema("item"),), tuple(dense), (), has_weight=weights is not None)
    columns = np.array(list(dense.values()), np.float32).reshape(len(dense), len(items)).T.copy()
    batch = SampleBatch(
        {"item": IdColumn(np.array(items, np.uint64))},
        columns,
        np.empty((len(items), 0), np.float32),
        None if weights is None else np.array(weights, np.float32),
    )
    return schema, batch


def opened(path: Path, *arguments: Any, **dense: list[float]) -> Catalogue:
    return Catalogue(open_source([write(path, *small(*arguments, **dense))]), TRAINED, "item")


def test_rows_have_the_columns_of_the_training_data(tmp_path: Path) -> None:
    catalogue = opened(tmp_path / "items.h5", [7, 9, 8], price=[0.5, 1.5, 2.5])
    batch = catalogue.read(1, 3)
    batch.validate(catalogue.schema)
    assert catalogue.num_samples == 3
    assert catalogue.names == ("item", "price")
    assert batch.ids["item"].values.tolist() == [9, 8]
    assert batch.ids["user"].values.tolist() == [0, 0]
    assert batch.ids["tags"].starts.tolist() == [0, 0, 0]
    assert np.isnan(batch.dense[:, 0]).all()
    assert batch.dense[:, 1].tolist() == [1.5, 2.5]
    assert batch.labels.shape == (2, 0)
    assert catalogue.read(0, 0).num_samples == 0


def test_shares_are_those_of_the_weights(tmp_path: Path) -> None:
    weights = [3.0, 0.0, 9.0]
    shares = opened(tmp_path / "items.h5", [7, 9, 8], weights).shares()
    found = shares.of(mix(np.array([8, 7, 5, 9], np.uint64)))
    np.testing.assert_allclose(np.exp(found), [0.75, 0.25, 0.0, 0.0], rtol=1e-6)
    with pytest.raises(UserError, match="weights are 0"):
        opened(tmp_path / "zero.h5", [7], [0.0]).shares()
    with pytest.raises(UserError, match="no dataset /weight"):
        opened(tmp_path / "none.h5", [7]).shares()


def test_an_item_in_two_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="item 9 in 2 rows"):
        opened(tmp_path / "items.h5", [9, 7, 9])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3), st.integers(0, 300), st.lists(st.integers(0, 40), max_size=6))
def test_what_is_drawn_for_a_sample_depends_on_its_place_alone(
    config: Config, epoch: int, begin: int, sizes: list[int]
) -> None:
    drawing = Drawing(config, catalogue_of(config))
    count = sum(sizes)
    none = SampleBatch({}, np.empty((count, 0), np.float32), np.ones((count, 1), np.float32))
    whole = drawing.add(none, epoch, begin).ids["negatives"]
    parts, place = [], begin
    for size in sizes:
        part = drawing.add(none.slice(0, size), epoch, place).ids
        assert part["negatives"].starts.tolist() == [6 * i for i in range(size + 1)]
        parts.append(part["negatives"].values)
        kinds = {int(i): n % KINDS for n, i in enumerate(ids_of(np.arange(ITEMS)))}
        assert part["negative_kind"].values.tolist() == [kinds[int(i)] for i in part["negatives"].values]
        place += size
    assert whole.values.tolist() == [int(i) for part in parts for i in part]


def test_items_are_drawn_alike_and_anew(config: Config) -> None:
    drawing = Drawing(config, catalogue_of(config))
    none = SampleBatch({}, np.empty((5000, 0), np.float32), np.ones((5000, 1), np.float32))
    draws = [
        drawing.add(none, epoch, begin).ids["negatives"].values
        for epoch, begin in ((0, 0), (1, 0), (0, 5000))
    ]
    draws.append(
        Drawing(load_config(config.resolved(), {"seed": 2}), catalogue_of(config))
        .add(none, 0, 0)
        .ids["negatives"]
        .values
    )
    expected = draws[0].size / ITEMS
    for drawn in draws:
        counts = np.unique(drawn, return_counts=True)[1]
        assert len(counts) == ITEMS
        # Chi-squared with 29 degrees of freedom: above 66 once in 10,000 times.
        assert ((counts - expected) ** 2 / expected).sum() < 66
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert (one == other).mean() == pytest.approx(1 / ITEMS, abs=0.01)


def test_readers_draw_for_training_only(config: Config) -> None:
    sources = {name: open_source(getattr(config.data, name)) for name in ("train", "valid")}
    everything = {**sources, "items": catalogue_of(config)}
    counts = {name: source.num_samples for name, source in everything.items()}
    readers = SplitReaders(config, everything, make_schedules(config, counts)).readers
    assert len(readers["train"].read(1, 10, 20).ids["negatives"].values) == 60
    assert readers["train"].read(0, 0, 0).ids["negatives"].num_samples == 0
    for name in ("valid", "items"):
        column = readers[name].read(0, 10, 20).ids["negatives"]
        assert (len(column.values), column.num_samples) == (0, 10)


def broken(config: Config, **data: Any) -> Config:
    changes = {f"data.{key}": value for key, value in data.items()}
    return load_config(config.resolved(), changes | {"features.absent.table": "item"})


def test_a_catalogue_that_does_not_fit_is_refused_in_one_line(config: Config, tmp_path: Path) -> None:
    item = IdColumn(np.arange(3, dtype=np.uint64))
    multi = IdColumn.from_lengths(np.arange(3, dtype=np.uint64), np.ones(3, np.int64))
    weights = np.ones(3, np.float32)

    def saved(name: str, ids: dict[str, IdColumn], weight: np.ndarray | None = weights) -> str:
        features = tuple(FeatureSchema(n, c.offsets is not None) for n, c in ids.items())
        schema = DatasetSchema(features, (), (), has_weight=weight is not None)
        none = np.empty((3, 0), np.float32)
        return write(tmp_path / name, schema, SampleBatch(ids, none, none, weight))

    cases = [
        ({"items": saved("a.h5", {"item": item, "kind": multi})}, "multi-hot in"),
        ({"items": saved("b.h5", {"kind": item})}, "data.item_feature: got 'item'"),
        ({"items": saved("c.h5", {"item": item})}, "features.negative_kind.sampled: got 'kind'"),
        ({"items": saved("d.h5", {"item": item, "kind": item, "x": item})}, "the column 'x'"),
        (
            {"items": saved("e.h5", {"item": item, "kind": item, "history": item})},
            "one-hot feature 'history'",
        ),
        ({"items": saved("f.h5", {"item": item, "kind": item}, None)}, "no dataset /weight"),
        ({"items": str(tmp_path / "absent.h5")}, "no file matches"),
        ({"item_feature": "history"}, "multi-hot in data.train"),
        ({"item_feature": "absent", "exclude_feature": None}, "data.item_feature: got 'absent'"),
        ({"exclude_feature": "absent"}, "data.exclude_feature: got 'absent'"),
    ]
    for changes, text in cases:
        with pytest.raises(UserError, match=text) as error:
            open_catalogue(broken(config, **changes), SCHEMA, "data.train")
        assert "\n" not in str(error.value)
    assert CATALOGUE.has_weight
    # Of the features that the run reads it may have some, and others besides.
    more = {"data.items": str(tmp_path / "d.h5"), "data.features": list(SCHEMA.feature_names)}
    found = open_catalogue(load_config(config.resolved(), more), SCHEMA, "data.train")
    assert found.names == ("item", "kind")


def test_a_catalogue_in_parquet_is_refused_beside_a_schema_too(tmp_path: Path) -> None:
    pl.DataFrame({"item": [1, 2]}).write_parquet(tmp_path / "items.parquet")
    data = write_retrieval(tmp_path) | {"items": str(tmp_path / "*.parquet"), "schema": "schema.toml"}
    config = load_config(retrieval_config(data, tmp_path / "run"))
    with pytest.raises(UserError, match=r"data.items: got the Parquet file .*items.parquet, expected HDF5"):
        open_catalogue(config, SCHEMA, "data.train")
