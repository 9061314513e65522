"""The tiny dataset as Parquet files with the schema file that they are read with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from persia_hpc.samples.batch import SampleBatch
from tests.support.samples import as_lists
from tests.support.tiny import VOCABULARY, tiny_batch

SCHEMA = """
[labels]
label = {}
[dense]
x0 = {}
x1 = {}
x2 = {}
[ids]
item = {}
user = {}
tags = {}
history = {}
"""


def frame_of(batch: SampleBatch) -> pl.DataFrame:
    """The columns of a batch of the tiny dataset."""
    columns: dict[str, object] = {
        name: pl.Series(as_lists(column), dtype=pl.List(pl.Int64))
        if column.offsets is not None
        else column.values.astype(np.int64)
        for name, column in batch.ids.items()
    }
    columns |= {f"x{i}": batch.dense[:, i] for i in range(3)}
    columns["label"] = batch.labels[:, 0].astype(np.int64)
    if batch.time is not None:
        columns["at"] = batch.time
    return pl.DataFrame(columns)


def write_parquet(
    folder: Path,
    num_samples: int,
    *,
    seed: int = 0,
    first: int = 160,
    rows: int = 16,
    vocabulary: int = VOCABULARY,
) -> tuple[str, str]:
    """Writes the samples of `write_tiny` to two files; returns their pattern and the path of the schema.

    first: samples of the first file
    rows: of a row group
    vocabulary: as of `tiny_batch`
    """
    frame = frame_of(tiny_batch(num_samples, seed=seed, vocabulary=vocabulary))
    frame[:first].write_parquet(folder / "day_1.parquet", row_group_size=rows)
    frame[first:].write_parquet(folder / "day_2.parquet", row_group_size=rows)
    (folder / "schema.toml").write_text(SCHEMA)
    return str(folder / "day_*.parquet"), str(folder / "schema.toml")
