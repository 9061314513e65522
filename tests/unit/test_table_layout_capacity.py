"""The capacity check knows how long multi-hot features are."""

from __future__ import annotations

import numpy as np
import pytest

from persia_hpc.config import load_config
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter
from persia_hpc.table_layout import make_layout

SCHEMA = DatasetSchema((FeatureSchema("history", multi=True),), ())


def write(path, num_samples, length):
    values = np.arange(num_samples * length, dtype=np.uint64)
    column = IdColumn.from_lengths(values, np.full(num_samples, length))
    zeros = np.zeros((num_samples, 1), np.float32)
    with DatasetWriter(path, SCHEMA) as writer:
        writer.write(SampleBatch({"history": column}, zeros[:, :0].copy(), zeros))


def config(rows, **feature):
    row_bytes = 4 * 2 * 4 + 24  # weights, their state, and what an index needs
    return load_config(
        {
            "data": {"train": ["x"], "batch_size": 100},
            "model": {"class": "dlrm"},
            "tables": {"default": {"dim": 4, "capacity": rows * row_bytes}},
            "features": {"history": feature},
        }
    )


def test_the_average_length_is_that_of_all_files(tmp_path):
    write(tmp_path / "a.h5", 30, 4)
    write(tmp_path / "b.h5", 10, 12)
    schema = open_source([str(tmp_path / "*.h5")]).schema
    assert schema == SCHEMA
    assert schema.feature("history").mean_length == 6.0
    make_layout(config(600), schema)
    with pytest.raises(UserError, match="may need 600;"):
        make_layout(config(500), schema)
    make_layout(config(500, max_length=5), schema)


def test_where_the_length_is_unknown_one_id_is_assumed():
    make_layout(config(100), SCHEMA)
    with pytest.raises(UserError, match="may need 100;"):
        make_layout(config(99), SCHEMA)


def test_a_capacity_beyond_what_buckets_count_is_refused() -> None:
    """Rows of a bucket have numbers of 32 bits."""
    few = {"tables.default.buckets": 1}
    base = config(600).resolved()
    make_layout(load_config(base, {**few, "tables.default.capacity": "128 GiB"}), SCHEMA)
    with pytest.raises(UserError, match=r"of 2 TiB = \d+ rows in 1 buckets, expected less than 4294967296"):
        make_layout(load_config(base, {**few, "tables.default.capacity": "2 TiB"}), SCHEMA)
    for huge in (1 << 63, "99999999999 TiB"):
        with pytest.raises(UserError, match=r"capacity = .* is more bytes than 2\^63 - 1"):
            load_config(base, {"tables.default.capacity": huge})
