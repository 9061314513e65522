"""A hashed run equals one without the option on data whose ids were replaced by hand, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter
from tests.support.hashing import hashed
from tests.support.tiny import run_digest, tiny_batch, tiny_config, trained_rows

ROUNDS, SIZE = 2, 7
FEATURES = ("item", "user", "tags")


def by_hand(column: IdColumn) -> IdColumn:
    values = [index for i in column.values.tolist() for index in hashed(i, ROUNDS, SIZE)]
    lengths = np.ones(len(column.values), np.int64) if column.offsets is None else np.diff(column.offsets)
    return IdColumn.from_lengths(np.array(values, np.uint64), lengths * ROUNDS)


def write(path: Path, batch: SampleBatch, columns: dict[str, IdColumn]) -> str:
    schema = DatasetSchema(
        tuple(FeatureSchema(name, c.offsets is not None) for name, c in columns.items()), ("x0", "x1", "x2")
    )
    with DatasetWriter(path, schema, chunk_rows=64) as writer:
        writer.write(SampleBatch(columns, batch.dense, batch.labels))
    return str(path)


@pytest.fixture
def runs(tmp_path):
    """Configurations of a hashed run and of its equal."""
    configs = {}
    for name, change, hash_option in (
        ("hashed", lambda c: c, {"size": SIZE, "rounds": ROUNDS}),
        ("by_hand", by_hand, None),
    ):
        files = {}
        for split, count, seed in (("train", 200, 0), ("valid", 90, 1)):
            batch = tiny_batch(count, seed=seed)
            columns = {f: change(batch.ids[f]) for f in FEATURES}
            files[split] = write(tmp_path / f"{name}-{split}.h5", batch, columns)
        config = tiny_config(
            files["train"],
            **{
                "data.valid": [files["valid"]],
                "run_dir": str(tmp_path / name),
                "tables.default.hash": hash_option,
                "train.epochs": 2,
            },
        )
        config["features"] = {"item": {"table": "item"}, "user": {"table": "user"}}
        configs[name] = config
    return configs


def test_hashed_training_equals_training_on_indices(tmp_path, runs):
    results = {name: ph.train(config, quiet=True) for name, config in runs.items()}
    assert run_digest(tmp_path / "hashed") == run_digest(tmp_path / "by_hand")
    assert results["hashed"]["valid"] == results["by_hand"]["valid"]
    for table, rows in trained_rows(tmp_path / "hashed").items():
        assert 0 < len(rows[0]) <= ROUNDS * SIZE, table
    predictions = []
    for name, config in runs.items():
        out = tmp_path / f"{name}.csv"
        ph.load(tmp_path / name).predict(config["data"]["valid"], out)
        predictions.append(out.read_text())
    assert predictions[0] == predictions[1]


def test_rows_of_ids_are_the_sums(tmp_path, runs):
    for config in runs.values():
        ph.train(config, quiet=True)
    ids = np.arange(40)
    got = ph.load(tmp_path / "hashed").rows("item", ids)
    plain = ph.load(tmp_path / "by_hand")
    expected = [plain.rows("item", hashed(i, ROUNDS, SIZE)).sum(axis=0) for i in ids.tolist()]
    assert got.shape == (40, 4)
    np.testing.assert_array_equal(got, expected)
    assert np.abs(got).max() > 0.01
