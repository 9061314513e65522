"""Parquet files read as they are give the samples that `preprocess table` makes of them, or are refused."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from persia_hpc.errors import DataError, UserError
from persia_hpc.preprocess.table.prepare import TableOptions, prepare
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.source import FileSource, open_source
from tests.support.samples import assert_equal

whole = st.integers(-(2**62), 2**62)
words = st.sampled_from(["", "NA", " x", "7", "-3", "7.0", "a|b", "NL", "é"])
digits = st.sampled_from(["7", "0", "-3", " 12 ", "7.0", "NA"])
dates = st.dates(datetime.date(1960, 1, 1), datetime.date(2100, 1, 1))
# The type of a column of ids, its values and what the schema says of the feature.
IDS: list[tuple[Any, st.SearchStrategy[Any], str]] = [
    (pl.Int64, st.none() | whole, ""),
    (pl.Int64, whole, 'type = "string"'),
    (pl.UInt64, st.integers(0, 2**63 - 1), ""),
    (pl.Int8, st.none() | st.integers(-128, 127), ""),
    (pl.Float32, st.integers(-1000, 1000).map(float), ""),
    (pl.Float64, st.none() | st.integers(-(2**40), 2**40).map(float), 'type = "integer"'),
    (pl.Boolean, st.none() | st.booleans(), ""),
    (pl.String, st.none() | words, 'type = "string"'),
    (pl.String, st.none() | digits, 'type = "integer"'),
    (pl.Categorical, st.none() | words, 'type = "string"'),
    (pl.String, st.none() | words, 'type = "string", separator = "|"'),
    (pl.Date, st.none() | dates, ""),
    (pl.Date, st.none() | dates, 'part = "weekday"'),
    (pl.Int64, st.none() | st.integers(0, 2**32), 'part = "hour"'),
    (pl.List(pl.Int64), st.none() | st.lists(st.none() | whole, max_size=5), ""),
    (pl.List(pl.String), st.lists(st.none() | words, max_size=3), 'type = "string"'),
]
small = st.floats(-100, 100, width=32)
DENSE: list[tuple[Any, st.SearchStrategy[Any], str]] = [
    (pl.Float32, small, ""),
    (pl.Float64, st.floats(-1e30, 1e30), ""),
    (pl.Float32, small | st.none() | st.just(float("nan")), "missing = 0.1"),
    (pl.Float64, st.floats(-0.9, 1e6), 'transform = "log1p"'),
    (pl.Int64, st.none() | whole, 'missing = -1, clip = [0, 50], transform = ["log1p"]'),
    (pl.Int16, st.integers(-50, 50), "clip = [-7.5, 20]"),
    (pl.Boolean, st.booleans(), ""),
    (pl.String, digits | st.none(), "missing = 5"),
]
LABELS: list[tuple[Any, st.SearchStrategy[Any], str]] = [
    (pl.Int64, st.sampled_from([0, 1]), ""),
    (pl.Boolean, st.booleans(), ""),
    (pl.Float32, st.none() | st.sampled_from([0.0, 1.0, float("nan")]), "missing = nan"),
    (pl.String, st.sampled_from(["yes", "no"]), 'positive = "yes"'),
    (pl.Float64, small, "threshold = 0.5"),
    (pl.Float64, st.none() | small, "binary = false, missing = 3"),
]
OPTIONAL = {
    "weight": (pl.Float64, st.floats(0, 10)),
    "group": (pl.String, st.sampled_from(["7", "s1", "true", "-3", "2.0"])),
    "time": (pl.Int64, st.integers(0, 2**40)),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[pl.DataFrame], int]:
    """A schema without its files, the frames of one to three files, and the rows of their row groups."""
    heights = draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    columns: dict[str, list[pl.Series]] = {}
    text = ["missing = " + draw(st.sampled_from(["[]", "['NA']", "['NA', 7]"]))]

    def column(name: str, dtype: Any, values: st.SearchStrategy[Any]) -> None:
        columns[name] = [
            pl.Series(name, draw(st.lists(values, min_size=n, max_size=n)), dtype, strict=False)
            for n in heights
        ]

    for name, (dtype, values) in OPTIONAL.items():
        if draw(st.booleans()):
            column(name, dtype, values)
            text.append(f'{name} = "{name}"')
    for part, kinds, least in (("labels", LABELS, 0), ("dense", DENSE, 0), ("ids", IDS, 1)):
        text.append(f"[{part}]")
        for i, kind in enumerate(draw(st.lists(st.integers(0, len(kinds) - 1), min_size=least, max_size=4))):
            dtype, values, says = kinds[kind]
            column(f"{part}{i}", dtype, values)
            text.append(f"{part}{i} = {{ {says} }}")
    frames = [pl.DataFrame([series[k] for series in columns.values()]) for k in range(len(heights))]
    return "\n".join(text), frames, draw(st.integers(1, 12))


def write(folder: Path, schema: str, frames: list[pl.DataFrame], rows: int) -> tuple[str, str]:
    """Returns the pattern of the files and the path of the schema."""
    for k, frame in enumerate(frames):
        frame.write_parquet(folder / f"day_{k}.parquet", row_group_size=rows)
    path = folder / "schema.toml"
    split = "[split]\nfractions = { train = 1.0 }\n"
    path.write_text(f'files = ["day_*.parquet"]\n{schema}\n{split}')
    return str(folder / "day_*.parquet"), str(path)


def same(one: SampleBatch, other: SampleBatch) -> None:
    assert_equal(one, other)
    for name in ("dense", "labels", "weight"):  # to the bit, NaN and -0 too
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or a.tobytes() == b.tobytes(), name


@settings(max_examples=40, deadline=None)
@given(tables(), st.data())
def test_parquet_is_read_as_preprocess_table_would_write_it(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[str, list[pl.DataFrame], int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("table")
    pattern, schema = write(folder, *table)
    try:
        prepare(TableOptions(folder / "out", Path(schema)))
    except UserError as error:  # a value that its column can't have, such as -1 with log1p
        with pytest.raises((UserError, DataError)) as refused:
            read_all(open_source([pattern], schema_file=schema))
        assert str(refused.value) == str(error)
        event("refused")
        return
    hdf5 = open_source([str(folder / "out" / "train.h5")])
    parquet = open_source([pattern], schema_file=schema)
    assert parquet.schema == hdf5.schema
    assert parquet.schema.encoding == hdf5.schema.encoding
    assert parquet.num_samples == hdf5.num_samples
    n = hdf5.num_samples
    for _ in range(4):
        begin = data.draw(st.integers(0, n))
        end = data.draw(st.integers(begin, n))
        same(parquet.read(begin, end), hdf5.read(begin, end))
    same(read_all(parquet), read_all(hdf5))
    if parquet.schema.has_time:
        np.testing.assert_array_equal(parquet.read_times(), hdf5.read_times())
    names = data.draw(st.permutations(hdf5.schema.feature_names))[:2]
    some = [
        open_source([p], features=names, schema_file=schema) for p in (pattern, str(folder / "out/train.h5"))
    ]
    same(read_all(some[0]), read_all(some[1]))


def read_all(source: FileSource) -> SampleBatch:
    return source.read(0, source.num_samples)
