"""Parquet files read as they are give the samples that `preprocess table` makes of them, or are refused."""

import datetime
from collections.abc import Callable
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
from persia_hpc.samples.reader import BatchReader, EpochOrder
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
    (pl.Float64, st.none() | st.floats(-100, 100, width=32) | st.just(float("nan")), 'part = "number"'),
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


def refusal_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except (UserError, DataError) as error:
        return str(error)
    return None


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
    options = TableOptions(folder / "out", Path(schema))
    refusal = refusal_of(lambda: prepare(options))
    if refusal is not None:  # a value that its column can't have, such as the text "x" among integers
        event("refused")
        assert refusal_of(lambda: read_all(open_source([pattern], schema_file=schema))) == refusal
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
    both = open_source([str(folder / "out" / "train.h5"), pattern], schema_file=schema)
    same(both.read(n, 2 * n), read_all(hdf5))
    if parquet.schema.has_time:
        np.testing.assert_array_equal(parquet.read_times(), hdf5.read_times())
    names = data.draw(st.permutations(hdf5.schema.feature_names))[:2]
    some = [
        open_source([p], features=names, schema_file=schema) for p in (pattern, str(folder / "out/train.h5"))
    ]
    same(read_all(some[0]), read_all(some[1]))


@pytest.mark.parametrize(("rows", "buffer_blocks"), [(50_000, 1), (20_000, 1), (20_000, 2), (20_000, 9)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_large_row_groups_are_read_in_the_order_of_the_epoch(
    tmp_path: Path, rows: int, buffer_blocks: int, shuffle: bool
) -> None:
    """Windows of one row group are used where they were decoded, those of several are put together."""
    n, random = 50_000, np.random.default_rng(0)
    text = [["a", "b", None][: i % 4] for i in range(n)]
    columns = {"y": [0.0, 1.0, None] * n, "x": random.normal(size=n), "user": np.arange(n), "tags": text}
    frame = pl.DataFrame({name: pl.Series(values[:n], strict=False) for name, values in columns.items()})
    pattern, schema = write(tmp_path, SCHEMA, [frame], rows)
    prepare(TableOptions(tmp_path / "out", Path(schema)))
    hdf5 = read_all(open_source([str(tmp_path / "out" / "train.h5")]))
    source = open_source([pattern], schema_file=schema)
    options = {"block_rows": rows, "buffer_blocks": buffer_blocks, "seed": 3, "shuffle": shuffle}
    reader = BatchReader(source, epochs=2, **options)
    for epoch in range(2):
        order = EpochOrder(n, rows, buffer_blocks, 3, epoch, shuffle, source.block_bounds(rows))
        for begin in range(0, n, 9_000):
            end = min(begin + 9_000, n)
            same(reader.read(epoch, begin, end), hdf5.take(order.rows(begin, end)))


def test_a_bad_value_deep_in_a_large_row_group_is_named_by_its_row(tmp_path: Path, schema: str) -> None:
    labels = np.zeros(40_000)
    labels[30_000] = 7
    frame = pl.DataFrame({"y": labels, "x": labels, "user": np.arange(40_000), "tags": [["a"]] * 40_000})
    source = open_source([written(tmp_path, frame, rows=40_000)], schema_file=schema)
    with pytest.raises(DataError, match=r"a\.parquet, row 30001: y: got 7\.0"):
        read_all(source)


def read_all(source: FileSource) -> SampleBatch:
    return source.read(0, source.num_samples)


SCHEMA = """
[labels]
y = { missing = nan }
[dense]
x = {}
[ids]
user = {}
tags = { column = "tags", type = "string" }
"""
FRAME = pl.DataFrame(
    {
        "y": [0, 1, None, 1, 0, 1],
        "x": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
        "user": [1, 2, 3, 4, 5, 6],
        "tags": [["a"], [], ["a", "b"], None, ["c"], ["d"]],
    }
)


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA)
    return str(path)


def written(tmp_path: Path, frame: pl.DataFrame = FRAME, rows: int = 2) -> str:
    path = tmp_path / "a.parquet"
    frame.write_parquet(path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": pl.Series([1, None, 3, 4, 5, 2**63 - 1], dtype=pl.Int64)}, None),
        ({"x": ["a"] * 6}, r"a\.parquet, row 1: x: got 'a' \(String\), expected a number"),
        ({"x": [1.0, 2.0, None, 1.0, 1.0, 1.0]}, r"a\.parquet, row 3: x: got no value \(Float64\)"),
        ({"x": [1.0, 2.0, 3.0, 1.0, float("inf"), 1.0]}, r"a\.parquet, row 5: x: got inf \(Float64\)"),
        ({"y": [0, 1, 0, 2, 0, 1]}, r"a\.parquet, row 4: y: got 2 \(Int64\), expected 0 or 1"),
        ({"user": [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]}, r"a\.parquet, row 6: user: got 6\.5 \(Float64\)"),
    ],
)
def test_a_bad_value_is_refused_when_it_is_read(
    tmp_path: Path, schema: str, change: dict[str, Any], message: str | None
) -> None:
    frame = FRAME.with_columns(**{name: pl.Series(values) for name, values in change.items()})
    source = open_source([written(tmp_path, frame)], schema_file=schema)
    if message is None:
        read_all(source)
        return
    with pytest.raises(DataError, match=message):
        read_all(source)


def test_the_row_of_a_bad_value_counts_from_the_begin_of_the_file(tmp_path: Path, schema: str) -> None:
    frame = pl.concat([FRAME] * 50).with_columns(x=pl.int_range(300).cast(pl.Float64))
    frame[211, "x"] = float("nan")
    source = open_source([written(tmp_path, frame, 100)], schema_file=schema)
    source.read(0, 211)
    with pytest.raises(DataError, match="row 212: x: got nan"):
        source.read(205, 220)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.drop("x"), "got no column 'x', expected it among y, user, tags"),
        (FRAME.drop("y"), "got no column 'y'.*use persia-hpc predict"),
        (FRAME.with_columns(x=pl.Series([[1.0]] * 6)), r"x: got List\(Float64\), expected numbers"),
        (FRAME.with_columns(user=pl.Series([{"a": 1}] * 6)), "user: got Struct.*expected integers"),
        (FRAME.with_columns(user=pl.Series(["a"] * 6)), 'ids.user without `type`, expected type = "string"'),
        (FRAME.with_columns(user=pl.lit(None)), "user: got nothing but nulls for ids.user without `type`"),
        (FRAME[:0], "got zero samples"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, schema: str, frame: pl.DataFrame, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        open_source([written(tmp_path, frame)], schema_file=schema)
    assert str(tmp_path / "a.parquet") in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dense]\nx = { transform = 'standardize' }", "dense.x.transform, which is learned from all"),
        ("[ids]\nuser = { min_count = 2 }\nitem = { vocabulary = true }", "min_count, ids.item.vocabulary"),
        ("split = { by = 'random' }", r"\[split\] by 'random', but Parquet files are read whole"),
        ("split = {}", r"\[split\] by 'order'"),
        ("[split]\nby = 'column'\ncolumn = 'day'\nvalues = { train = [1] }", r"\[split\] by 'column'"),
    ],
)
def test_a_schema_that_needs_a_pass_over_the_data_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(text + ("" if "[ids]" in text else "\n[ids]\nuser = {}\n"))
    with pytest.raises(UserError, match=message):
        open_source([written(tmp_path)], schema_file=str(path))


def test_parquet_without_a_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a Parquet file, expected data\.schema beside it"):
        open_source([written(tmp_path)])


@pytest.mark.parametrize("length", [0, 3, 5, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, schema: str, length: int) -> None:
    path = Path(written(tmp_path))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a\.parquet: (can't read it as|neither an HDF5|got an empty file)"):
        open_source([str(path)], schema_file=schema)


def test_a_file_replaced_while_in_use_is_noticed(tmp_path: Path, schema: str) -> None:
    source = open_source([written(tmp_path)], schema_file=schema)
    written(tmp_path, FRAME[:4])
    with pytest.raises(DataError, match="replaced while in use"):
        source.read(0, 1)


def test_files_that_differ_are_refused(tmp_path: Path, schema: str) -> None:
    first = written(tmp_path)
    FRAME.with_columns(tags=pl.Series(["a"] * 6)).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="one-hot feature 'tags', but it is multi-hot"):
        open_source([first, str(tmp_path / "b.parquet")], schema_file=schema)


def test_data_to_be_scored_need_no_labels(tmp_path: Path, schema: str) -> None:
    source = open_source([written(tmp_path, FRAME.drop("y"))], schema_file=schema, labels=False)
    assert source.schema.label_names == ()
    assert read_all(source).labels.shape == (6, 0)


def test_row_groups_are_the_blocks(tmp_path: Path, schema: str) -> None:
    """Small ones together, but never those of two files; a limit cuts the last one."""
    frame = pl.concat([FRAME] * 4)
    frame[:14].write_parquet(tmp_path / "b.parquet", row_group_size=3)
    pattern = [written(tmp_path, frame[:21], 4), str(tmp_path / "b.parquet")]
    bounds = open_source(pattern, schema_file=schema).block_bounds(8)
    assert bounds is not None
    assert bounds.tolist() == [0, 8, 16, 21, 27, 35]
    bounds = open_source(pattern, schema_file=schema, limit=29).block_bounds(3)
    assert bounds is not None
    assert bounds.tolist() == [0, 4, 8, 12, 16, 20, 21, 24, 27, 29]


@pytest.mark.parametrize("value", [2**63, 2**63 + 1])
def test_ids_that_stand_for_missing_and_rare_ones_are_refused(
    tmp_path: Path, schema: str, value: int
) -> None:
    near = pl.Series([2**63 - 1, 2**63 + 2, 2**64 - 1, 0, 1, 2], dtype=pl.UInt64)
    source = open_source([written(tmp_path, FRAME.with_columns(user=near))], schema_file=schema)
    assert read_all(source).ids["user"].values.tolist() == near.to_list()
    reserved = pl.Series([0, 1, value, 3, 4, 5], dtype=pl.UInt64)
    source = open_source([written(tmp_path, FRAME.with_columns(user=reserved))], schema_file=schema)
    with pytest.raises(DataError, match=rf"row 3: user: got {value} \(UInt64\), expected an id other than"):
        read_all(source)
