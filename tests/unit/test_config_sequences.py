"""[sequences.NAME] sets pooling and max_length of its features, and contradicts nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout
from persia_hpc.trainer.batch import make_inputs

CONFIG: dict[str, Any] = {
    "data": {"train": ["a"]},
    "model": {"class": "tower"},
    "features": {"item": {"table": "item"}, "action": {"dim": 4}},
    "tables": {"item": {"dim": 8}},
    "sequences": {"history": {"features": ["item", "artist", "action"], "max_length": 200}},
}
SCHEMA = DatasetSchema(
    (
        FeatureSchema("user"),
        FeatureSchema("item", True),
        FeatureSchema("tags", True),
        FeatureSchema("artist", True),
        FeatureSchema("action", True),
    )
)


def changed(change: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for key, value in change.items():
        *path, last = key.split(".")
        at = config
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return config


def test_features_take_pooling_and_max_length_from_their_sequence() -> None:
    config = load_config(CONFIG)
    for name in ("item", "artist", "action"):
        assert (config.features[name].pooling, config.features[name].max_length) == ("jagged", 200)
    assert config.features["item"].table == "item"
    assert config.feature("tags").pooling == "sum"
    assert load_config(config.resolved()) == config  # as from the run's config.toml
    layout = make_layout(config, SCHEMA)
    assert {f.name: (f.sequence, f.shares) for f in layout.features} == {
        "user": (None, None),
        "item": ("history", None),
        "tags": (None, None),
        "artist": ("history", "item"),
        "action": ("history", "item"),
    }
    assert layout.bags == ("item", "tags")
    inputs = make_inputs(layout, SCHEMA)
    assert inputs.features_of("history") == ("item", "artist", "action")
    assert inputs.jagged == ("item", "artist", "action")
    with pytest.raises(UserError, match="got sequence 'events', expected one of history"):
        inputs.features_of("events")


def test_only_features_of_as_many_rows_share_offsets() -> None:
    config = load_config(changed({"tables.action": {"dim": 4, "hash": {"size": 10, "rounds": 2}}}))
    layout = make_layout(config, SCHEMA)
    assert {f.name: f.shares for f in layout.features if f.sequence} == {
        "item": None,
        "artist": "item",
        "action": None,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences.history.features": []}, "sequences.history.features is empty"),
        ({"sequences.history.pooling": "mean"}, "sequences.history.pooling = 'mean': expected one of jagged"),
        ({"sequences.history.features": ["item", "item"]}, "names 'item' twice"),
        ({"sequences.b": {"features": ["item"]}}, r"names 'item', which is in \[sequences.history\] too"),
        ({"features.item.pooling": "sum"}, r"features.item.pooling = 'sum', but \[sequences.history\]"),
        ({"features.item.max_length": 10}, r"features.item.max_length = 10, but .* has 200; leave it out"),
        ({"sequences.b": {"features": ["x"], "pooling": "sequence"}}, "sequences.b .*needs max_length"),
        ({"data.features": ["item", "action"]}, "names 'artist', but data.features leaves it out"),
        ({"sequences.history.feature": "a"}, "'features'"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(changed(change))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("user", r"\[sequences.history\] names 'user', which has one id in each sample"),
        ("x", r"\[sequences.history\] names 'x', but the dataset has no such feature"),
    ],
)
def test_features_that_cannot_be_sequences_are_refused(feature: str, message: str) -> None:
    config = load_config(changed({"sequences.history.features": ["item", "artist", "action", feature]}))
    with pytest.raises(UserError, match=message):
        make_layout(config, SCHEMA)
