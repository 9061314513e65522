"""Requests whose features have one id each: the short way gives what the long one gives, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.serving.one_hot import OneHot
from tests.support.tiny import tiny_config, write_tiny

NAMES = ("user", "item", "shop", "bought")
SAMPLES = 200


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ph.Reader:
    """Of tables of two dims, one of them with two features that don't follow one another."""
    folder, rng = tmp_path_factory.mktemp("one_hot"), np.random.default_rng(5)
    schema = ph.DatasetSchema(tuple(ph.FeatureSchema(name) for name in NAMES))
    ids = {name: IdColumn(rng.integers(0, 50, SAMPLES).astype(np.uint64)) for name in NAMES}
    labels = rng.integers(0, 2, (SAMPLES, 1)).astype(np.float32)
    with DatasetWriter(folder / "train.h5", schema) as writer:
        writer.write(SampleBatch(ids, np.zeros((SAMPLES, 0), np.float32), labels))
    config = tiny_config(str(folder / "train.h5"), run_dir=str(folder / "run"))
    config["features"] = {"item": {"table": "item"}, "bought": {"table": "item"}, "user": {"table": "user"}}
    config["tables"]["user"]["dim"] = 4
    config["tables"]["shop"] = {"dim": 6}
    config["model"] = {"class": "tower", "hidden": [4]}
    config["export"] = {"every_seconds": 0.01, "dir": str(folder / "export")}
    ph.train(config, quiet=True)
    return ph.Reader(folder / "export", follow=False)


def both(reader: ph.Reader, features: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    short = reader.pooled(features).values
    with monkeypatch.context() as patch:
        patch.setattr(ph.Reader, "_one_hot", lambda *_: None)
        return short, reader.pooled(features).values


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: int(rng.integers(0, 60)),
        lambda rng: rng.integers(0, 60),
        lambda rng: -int(rng.integers(1, 9)),
        lambda rng: rng.integers(0, 60, 17),
        lambda rng: rng.integers(0, 60, 17).astype(np.int16),
        lambda rng: rng.integers(0, 60, 34).astype(np.uint64)[::2],
        lambda rng: rng.integers(0, 60, 17).tolist(),
    ],
)
def test_gives_what_the_long_way_gives(reader: ph.Reader, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    short, long = both(reader, {name: make(rng) for name in NAMES}, monkeypatch)
    assert list(short) == list(long)
    for name in NAMES:
        np.testing.assert_array_equal(short[name], long[name])
    assert any(values.any() for values in short.values()) or "-" in str(make(rng))


@pytest.mark.parametrize(
    "changes",
    [
        {"item": "a text"},
        {"item": True},
        {"item": [1]},
        {"item": 1 << 70},
        {"item": 1.5},
        {"other": 1},
        {"item": np.zeros(0, np.int64), "user": [], "shop": [], "bought": []},
        {"item": [1, 2], "user": [1, 2], "shop": [1, 2], "bought": [1]},
        {"item": [1, 2], "user": [1, 2], "shop": [1, 2], "bought": [[1, 2]]},
        {"item": [1, True], "user": [1, 2], "shop": [1, 2], "bought": [1, 2]},
    ],
)
def test_what_is_no_list_of_integers_is_left_to_the_long_way(reader: ph.Reader, changes: Any) -> None:
    with reader._follower.side() as side:
        plan = OneHot.of(side.served)
        assert plan is not None
        assert plan.pooled(side, {**dict.fromkeys(NAMES, 3), **changes}) is None
        assert plan.pooled(side, [("item", 1)]) is None  # type: ignore[arg-type]


def test_a_run_with_lists_of_ids_has_no_short_way(tmp_path: Path) -> None:
    export = {"every_seconds": 0.01, "dir": str(tmp_path / "export")}
    data = write_tiny(tmp_path / "train.h5", 64)
    ph.train(tiny_config(data, export=export, run_dir=str(tmp_path / "run")), quiet=True)
    with ph.Reader(tmp_path / "export", follow=False)._follower.side() as side:
        assert OneHot.of(side.served) is None
