"""`ph.load(run).score`: the numbers that `predict` writes, from values by name, without a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import persia_hpc as ph
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from tests.support.tiny import SEQUENCES, tiny_config, write_sequences, write_tiny

Write = Callable[..., str]


def trained(folder: Path, write: Write, **changes: Any) -> tuple[Any, SampleBatch]:
    """Returns a run and the samples that it was trained on."""
    data = write(folder / "train.h5", 60)
    ph.train(tiny_config(data, run_dir=str(folder / "run"), **changes), quiet=True)
    return ph.load(folder / "run"), open_source([data]).read(0, 60)


def lists(column: IdColumn, values: np.ndarray) -> list[list[Any]]:
    assert column.offsets is not None
    return [values[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]


def named(batch: SampleBatch, row: int | None = None) -> dict[str, Any]:
    """Returns the features of all samples of a batch by name, or of one as one request."""
    found: dict[str, Any] = {}
    for name, column in batch.ids.items():
        values = column.values.tolist() if column.offsets is None else lists(column, column.values)
        found[name] = values if row is None else values[row]
        if column.weights is not None:
            weights = lists(column, column.weights)
            found[name] = {"ids": found[name], "weights": weights if row is None else weights[row]}
    return found


def predicted(run: Any, folder: Path, batch: SampleBatch, schema: DatasetSchema) -> np.ndarray:
    path = folder / "asked.h5"
    with DatasetWriter(path, schema) as writer:
        writer.write(batch)
    run.predict([str(path)], folder / "scores.h5")
    with h5py.File(folder / "scores.h5") as file:
        return np.asarray(file["probability"][:])


@pytest.mark.parametrize(
    ("write", "changes"),
    [
        (write_tiny, {}),
        (write_tiny, {"wire.rows": "fp16", "train.amp": "bf16", "train.average": 0.9}),
        (write_sequences, SEQUENCES),
        (write_tiny, {"tables.user": {"dim": 6, "capacity": "1 MiB", "hash": {"rounds": 2, "size": 16}}}),
    ],
)
def test_scores_are_bit_for_bit_what_predict_writes(
    write: Write, changes: dict[str, Any], tmp_path: Path
) -> None:
    run, batch = trained(tmp_path, write, **changes)
    batch.ids["item"].values[:2] = 1 << 40  # never trained
    expected = predicted(run, tmp_path, batch, run.schema)
    assert len(np.unique(expected)) > 30
    found = run.score(named(batch), batch.dense)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    by_name = {name: batch.dense[:, i].tolist() for i, name in enumerate(run.schema.dense_names)}
    assert np.array_equal(run.score(named(batch), by_name), expected)
    for row in (0, 17):
        one = predicted(run, tmp_path, batch.slice(row, row + 1), run.schema)
        asked = {name: float(batch.dense[row, i]) for i, name in enumerate(run.schema.dense_names)}
        assert np.array_equal(run.score(named(batch, row), asked), one[0])
        assert np.array_equal(run.score(named(batch, row), batch.dense[row]), one[0])


def test_no_samples_have_no_scores(tmp_path: Path) -> None:
    run, batch = trained(tmp_path, write_tiny)
    nothing = {name: [] for name in batch.ids}
    assert run.score(nothing, batch.dense[:0]).shape == (0, 1)


def test_what_evaluations_slice_by_is_not_needed_twice(tmp_path: Path) -> None:
    run, batch = trained(tmp_path, write_tiny, **{"train.slices": ["user"]})
    assert run.score(named(batch), batch.dense).shape == (60, 1)


def test_features_of_a_sequence_must_have_as_many_ids(tmp_path: Path) -> None:
    run, batch = trained(tmp_path, write_sequences, **SEQUENCES)
    asked = named(batch, 0)
    asked["action"] = [*asked["action"], 1]
    with pytest.raises(ph.UserError, match=r"ids of 'history' but .* of 'action' in row 0"):
        run.score(asked, batch.dense[0])


def test_texts_are_ids_by_their_hash(tmp_path: Path) -> None:
    from persia_hpc.samples.ids import hash_strings

    run, batch = trained(tmp_path, write_tiny)
    words = ["a", "b", "c"]
    batch = dataclasses.replace(
        batch.slice(0, 3), ids={**batch.slice(0, 3).ids, "user": IdColumn(hash_strings(words))}
    )
    assert np.array_equal(
        run.score({**named(batch), "user": words}, batch.dense), run.score(named(batch), batch.dense)
    )
