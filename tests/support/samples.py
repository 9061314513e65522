"""Small random samples, and dataset files of them, for tests."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

SCHEMA = DatasetSchema((FeatureSchema("user"), FeatureSchema("tags", True)), ("x", "y"), ("click",))
SCHEMA_OPTIONAL = DatasetSchema(SCHEMA.features, SCHEMA.dense_names, SCHEMA.label_names, True, True, True)


def random_batch(n: int, *, seed: int = 0, optional: bool = False) -> SampleBatch:
    """n samples of SCHEMA (or SCHEMA_OPTIONAL); "user" counts rows from 1,000,000 times the seed."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, n)
    return SampleBatch(
        {
            "user": IdColumn((np.arange(n) + 1_000_000 * seed).astype(np.uint64)),
            "tags": IdColumn.from_lengths(rng.integers(0, 2**64, lengths.sum(), np.uint64), lengths),
        },
        rng.normal(size=(n, 2)).astype(np.float32),
        rng.integers(0, 2, (n, 1)).astype(np.float32),
        rng.random(n, np.float32) if optional else None,
        rng.integers(-5, 5, n) if optional else None,
        rng.integers(0, 2**40, n) if optional else None,
    )


def write(path: Path, *batches: SampleBatch, **arguments: Any) -> str:
    """Write batches of SCHEMA (or SCHEMA_OPTIONAL) to a dataset file; returns its path."""
    schema = SCHEMA if batches[0].weight is None else SCHEMA_OPTIONAL
    with DatasetWriter(path, schema, **arguments) as writer:
        for batch in batches:
            writer.write(batch)
    return str(path)


def as_lists(column: IdColumn) -> list[list[int]]:
    """The ids of each sample."""
    if column.offsets is None:
        return [[int(v)] for v in column.values]
    ends = column.offsets.tolist()
    return [column.values[a:b].tolist() for a, b in pairwise(ends)]


def assert_equal(got: SampleBatch, expected: SampleBatch) -> None:
    """Same samples, bit for bit, and a valid batch."""
    got.validate()
    assert list(got.ids) == list(expected.ids)
    for name, column in expected.ids.items():
        np.testing.assert_array_equal(got.ids[name].values, column.values)
        assert (got.ids[name].offsets is None) == (column.offsets is None)
        if column.offsets is not None:
            np.testing.assert_array_equal(got.ids[name].offsets, column.offsets)
    for field in ("dense", "labels", "weight", "group", "time"):
        a, b = getattr(got, field), getattr(expected, field)
        assert (a is None) == (b is None), field
        if b is not None:
            np.testing.assert_array_equal(a, b, strict=True)
