"""Samples from values by name: what goes in comes out, and what doesn't fit is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.samples.named import named_samples
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

SCHEMA = DatasetSchema(
    (
        FeatureSchema("item"),
        FeatureSchema("tags", multi=True),
        FeatureSchema("seen", multi=True, weighted=True),
    ),
    ("x", "y"),
)
IDS = st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3)
SAMPLE = st.tuples(st.integers(0, 2**64 - 1), IDS, IDS, st.tuples(*[st.floats(-10, 10, width=32)] * 2))


def named(samples: list[Any], arrays: bool) -> tuple[dict[str, Any], Any]:
    def form(ids: list[int]) -> Any:
        return np.array(ids, np.uint64) if arrays and all(i >= 0 for i in ids) else ids

    features = {
        "item": form([s[0] for s in samples]),
        "tags": [form(s[1]) for s in samples],
        "seen": {"ids": [form(s[2]) for s in samples], "weights": [[0.5] * len(s[2]) for s in samples]},
    }
    return features, np.array([s[3] for s in samples], np.float32).reshape(-1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(SAMPLE, max_size=4), st.booleans())
def test_a_batch_holds_what_was_given(samples: list[Any], arrays: bool) -> None:
    features, dense = named(samples, arrays)
    batch, single = named_samples(SCHEMA, features, dense)
    assert not single
    batch.validate()
    assert batch.ids["item"].values.tolist() == [s[0] for s in samples]
    for place, name in ((1, "tags"), (2, "seen")):
        column = batch.ids[name]
        assert column.offsets is not None
        assert np.diff(column.offsets).tolist() == [len(s[place]) for s in samples]
        assert column.values.tolist() == [i % 2**64 for s in samples for i in s[place]]
    assert (batch.ids["seen"].weights == 0.5).all()
    assert np.array_equal(batch.dense, dense)
    by_name, _ = named_samples(SCHEMA, features, {"y": dense[:, 1].tolist(), "x": dense[:, 0]})
    assert np.array_equal(by_name.dense, dense)


@settings(max_examples=60, deadline=None)
@given(SAMPLE)
def test_one_request_is_a_batch_of_one(sample: Any) -> None:
    features, dense = named([sample], arrays=False)
    expected, _ = named_samples(SCHEMA, features, dense)
    one = {
        "item": features["item"][0],
        "tags": features["tags"][0],
        "seen": {key: values[0] for key, values in features["seen"].items()},
    }
    batch, single = named_samples(SCHEMA, one, {"x": float(dense[0, 0]), "y": np.float32(dense[0, 1])})
    assert single
    batch.validate()
    for name, column in batch.ids.items():
        assert column.values.tolist() == expected.ids[name].values.tolist()
        assert column.starts.tolist() == expected.ids[name].starts.tolist()
    assert np.array_equal(batch.dense, expected.dense)


def test_arrays_of_several_integer_types_stay_exact() -> None:
    most = 2**64 - 1
    tags = [np.array([-1, 7]), np.array([most], np.uint64)]
    schema = DatasetSchema((FeatureSchema("tags", multi=True),))
    assert named_samples(schema, {"tags": tags})[0].ids["tags"].values.tolist() == [most, 7, most]
    table = np.array([[1, 2], [3, 4]], np.int32)
    batch, single = named_samples(schema, {"tags": table})
    assert not single
    assert batch.ids["tags"].values.tolist() == [1, 2, 3, 4]
    assert named_samples(schema, {"tags": []}).single


GOOD: dict[str, Any] = {"item": 1, "tags": [2], "seen": {"ids": [3], "weights": [1.0]}}


@pytest.mark.parametrize(
    ("change", "dense", "message"),
    [
        ({"itm": 1}, [0, 0], "got feature 'itm', expected .* item, tags, seen; did you mean 'item'"),
        ({"item": None}, [0, 0], "features.item: got nothing .*expected an id for one request"),
        ({"item": 1.5}, [0, 0], "features.item: got float '1.5'"),
        ({"item": True}, [0, 0], "features.item: got bool"),
        ({"item": 2**64}, [0, 0], "features.item: got 18446744073709551616, expected an id of 64 bits"),
        ({"item": [1, 2]}, [0, 0], "features.tags: got the values of one request, but features.item"),
        ({"item": [[1]]}, [0, 0], "features.item: got list"),
        ({"item": "\ud800"}, [0, 0], "features.item: got a text that isn't Unicode"),
        ({"tags": 2}, [0, 0], "features.tags: got int '2', expected a list of ids"),
        ({"tags": [2.0]}, [0, 0], "features.tags: got float"),
        ({"tags": [[[2]]]}, [0, 0], "features.tags: got list"),
        ({"seen": [3]}, [0, 0], 'features.seen: got list .*expected {"ids": ..., "weights": ...}'),
        (
            {"seen": {"ids": [3], "weights": []}},
            [0, 0],
            "features.seen: got 0 weights in sample 0, expected 1",
        ),
        ({"seen": {"ids": [3], "weights": [np.nan]}}, [0, 0], "sample 0: got weight nan of an id of 'seen'"),
        (
            {"seen": {"ids": [3], "weights": 1}},
            [0, 0],
            "features.seen: got int '1' among its lists of weights",
        ),
        ({}, None, "got no dense features, expected 2: x, y"),
        ({}, {"x": 1}, "got no dense feature 'y'"),
        ({}, {"x": 1, "z": 1}, "got dense feature 'z', expected those of the dataset: x, y"),
        ({}, {"x": 1, "y": "a"}, "dense.y: got str 'a', expected numbers"),
        ({}, {"x": 1, "y": [1]}, r"dense.y: got an array \[1\], expected one number"),
        ({}, [1, 2, 3], r"dense: got an array \[3\], expected 2 numbers \(x, y\)"),
        ({}, [[1, 2]], "dense: got those of 1 samples, but features.item has the values of one request"),
        ({}, [1, np.inf], "sample 0: got inf in dense feature 'y', expected a finite number$"),
        ({}, [[1, 2], [3]], "dense: got lists of different lengths"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], dense: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_samples(SCHEMA, {**GOOD, **change}, dense)


def test_all_features_are_needed() -> None:
    with pytest.raises(UserError, match="got no feature 'tags', expected all of the dataset"):
        named_samples(SCHEMA, {"item": 1}, [0, 0])
    with pytest.raises(UserError, match="expected values by name, as a dictionary"):
        named_samples(SCHEMA, [1, 2], [0, 0])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected none: the dataset has no dense columns"):
        named_samples(DatasetSchema((FeatureSchema("item"),)), {"item": 1}, [1.0])
