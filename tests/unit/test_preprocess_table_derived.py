"""Features that are made of other columns: buckets of numbers, and crosses of several features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import buckets
from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.table import prepare as table
from persia_hpc.preprocess.table.schema import load_schema, settings_of
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, TextIds, hash_strings
from persia_hpc.samples.source import open_source
from tests.unit.test_preprocess_table import prepare, read

HEAD = 'files = ["data.csv"]\n[split]\nfractions = { train = 1.0 }\n[labels.y]\n[ids]\n'
TIME = '"%Y-%m-%d %H:%M"'
CSV = """y,age,country,at,n
1,17,NL,2026-11-28 12:40,7
0,18,DE,2026-11-29 23:59,7
1,,NL,2026-11-28 12:01,8
0,99.5,,2026-11-28 00:00,7
1,25,DE,,9
"""
SCHEMA = f"""{HEAD}age = {{ edges = [18, 25, 35] }}
country = {{ type = "string" }}
hour = {{ column = "at", part = "hour", format = {TIME} }}
n = {{}}
country_hour = {{ cross = ["country", "hour"] }}
three = {{ cross = ["age", "n", "country"] }}
"""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.floats(-100, 100) | st.just(float("nan")), max_size=20),
    st.sets(st.integers(-50, 50), min_size=1, max_size=6),
)
def test_a_bucket_is_the_number_of_edges_at_or_below(numbers: list[float | None], edges: set[int]) -> None:
    values = pl.Series("x", numbers, dtype=pl.Float64)
    place = Place(Frame(pl.DataFrame({"x": values}), Path("x")), "x")
    found = buckets(values, [float(edge) for edge in sorted(edges)], place)
    expected = [None if x is None or x != x else sum(edge <= x for edge in edges) for x in numbers]
    assert found.to_list() == expected
    assert found.dtype == pl.Int64


def test_crosses_and_buckets_are_ids(tmp_path: Path) -> None:
    prepare(tmp_path, SCHEMA, {"data.csv": CSV})
    ids = {name: column.values.tolist() for name, column in read(tmp_path).ids.items()}
    assert ids["age"] == [0, 1, MISSING_ID, 3, 2]
    pairs = hash_strings(["NL\x1f12", "DE\x1f23", "NL\x1f12"]).tolist()
    assert ids["country_hour"] == [*pairs, MISSING_ID, MISSING_ID]
    first, second, last = hash_strings(["0\x1f7\x1fNL", "1\x1f7\x1fDE", "2\x1f9\x1fDE"]).tolist()
    assert ids["three"] == [first, second, MISSING_ID, MISSING_ID, last]


def test_a_cross_is_the_same_however_a_file_spells_whole_numbers(tmp_path: Path) -> None:
    found = []
    for name, spelling in (
        ("plain", CSV),
        ("point", CSV.replace(",7\n", ",7.0\n").replace(",8\n", ",8.0\n")),
    ):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, SCHEMA, {"data.csv": spelling})
        found.append(read(tmp_path / name).ids)
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name].values, found[1][name].values, name)


def test_parquet_gives_the_same_ids_prepared_and_as_it_is(tmp_path: Path) -> None:
    prepare(tmp_path, SCHEMA, {"data.csv": CSV})
    frame = pl.read_csv(tmp_path / "data.csv").with_columns(pl.col("at").str.to_datetime("%Y-%m-%d %H:%M"))
    file = tmp_path / "data.parquet"
    frame.write_parquet(file)
    schema = SCHEMA.replace('files = ["data.csv"]\n[split]\nfractions = { train = 1.0 }\n', "")
    (tmp_path / "whole.toml").write_text(schema.replace(f", format = {TIME}", ""))
    expected = read(tmp_path)
    for features in (None, ["country_hour", "age"], ["three"]):
        source = open_source([str(file)], features=features, schema_file=str(tmp_path / "whole.toml"))
        got = source.read(0, 5)
        assert list(got.ids) == (features or list(expected.ids))
        for name, column in got.ids.items():
            np.testing.assert_array_equal(column.values, expected.ids[name].values, name)


def test_rare_crosses_and_vocabularies_are_their_own(tmp_path: Path) -> None:
    schema = SCHEMA.replace('"hour"] }', '"hour"], min_count = 2 }').replace(
        '"country"] }', '"country"], vocabulary = true }'
    )
    prepare(tmp_path, schema, {"data.csv": CSV})
    ids = read(tmp_path).ids
    pair = int(hash_strings(["NL\x1f12"])[0])
    assert ids["country_hour"].values.tolist() == [pair, RARE_ID, pair, MISSING_ID, MISSING_ID]
    assert ids["three"].values.tolist() == [1, 2, MISSING_ID, MISSING_ID, 3]
    texts = TextIds.of_run(open_source([str(tmp_path / "out" / "train.h5")]).schema, tmp_path / "out")
    assert texts("three", ["1\x1f7\x1fDE", "9\x1f9\x1f9"]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("[18, 25, 35]", "[18, 26, 35]", r"ids\.age\.edges"),
        ('["country", "hour"]', '["hour", "country"]', r"ids\.country_hour\.cross"),
        ('part = "hour"', 'part = "weekday"', r"ids\.country_hour\.cross"),
        ("age = { edges = [18, 25, 35] }", "age = {}", r"ids\.age\.edges: got None"),
    ],
)
def test_an_encoding_has_edges_and_crosses(tmp_path: Path, old: str, new: str, part: str) -> None:
    prepare(tmp_path, SCHEMA, {"data.csv": CSV})
    (tmp_path / "schema.toml").write_text(SCHEMA.replace(old, new).replace("three =", "# three ="))
    options = table.TableOptions(tmp_path / "b", tmp_path / "schema.toml", encoding=tmp_path / "out")
    with pytest.raises(UserError, match=part):
        table.prepare(options)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x = { edges = [] }", "ids.x.edges: got .*, expected rising numbers"),
        ("x = { edges = [2, 1] }", "ids.x.edges: got .*, expected rising numbers"),
        ("x = { edges = [1, 1] }", "ids.x.edges: got .*, expected rising numbers"),
        ("x = { edges = ['a'] }", "ids.x.edges: got .*, expected rising numbers"),
        ("x = { edges = [nan] }", "ids.x.edges: got .*, expected rising numbers"),
        ("x = { edges = 3 }", "ids.x.edges: got 3, expected rising numbers"),
        ("x = { edges = [1], part = 'hour' }", "ids.x.edges: .* expected no part, separator"),
        ("x = { edges = [1], type = 'string' }", "ids.x.edges: .* expected no part, separator"),
        ("x = { edges = [1], separator = '|' }", "ids.x.edges: .* expected no part, separator"),
        ("x = { cross = [] }", "ids.x.cross: .* two names or more"),
        ("x = { cross = ['n'] }", "ids.x.cross: .* two names or more"),
        (
            "x = { cross = ['n', 'contry'] }",
            "ids.x.cross: .* names of other features .*did you mean 'country'",
        ),
        (
            "x = { cross = ['n', 'tags'] }",
            "ids.x.cross: .* names of other features with one id a row, n, country",
        ),
        ("x = { cross = ['n', 'x'] }", "ids.x.cross: .* names of other features"),
        (
            "x = { cross = ['n', 'country'], column = 'n' }",
            "got key 'column' in .ids.x., expected one of cross",
        ),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    file = tmp_path / "schema.toml"
    file.write_text(f"{HEAD}n = {{}}\ncountry = {{}}\ntags = {{ separator = '|' }}\n{entry}\n")
    with pytest.raises(UserError, match=message):
        load_schema(file)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": [1.5, 2.0], "b": ["x", "y"]}, "row 1: a: got 1.5 .*text or integers"),
        ({"a": [[1], [2]], "b": ["x", "y"]}, "a: got .*expected one value in each row, for the cross ids.ab"),
        ({"a": [[1], [2]], "b": [1, 2]}, "a: got .*expected one value in each row, for the edges of ids.c"),
    ],
)
def test_values_that_cannot_be_crossed_are_refused(
    tmp_path: Path, rows: dict[str, Any], message: str
) -> None:
    pl.DataFrame({"y": [1, 0], **rows}).write_parquet(tmp_path / "data.parquet")
    entries = 'b = {}\nab = { cross = ["a", "b"] }\na = {}\n'
    if "edges" in message:
        entries = 'c = { column = "a", edges = [1, 2] }\n'
    if "list" not in message and isinstance(rows["a"][0], float):
        entries = (
            entries.replace("a = {}", 'a = { column = "b" }').replace('["a"', '["f"')
            + 'f = { column = "a" }\n'
        )
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, HEAD.replace("data.csv", "data.parquet") + entries, {})


def test_schemas_without_them_have_the_settings_of_older_versions(tmp_path: Path) -> None:
    file = tmp_path / "schema.toml"
    file.write_text(f"{HEAD}n = {{}}\n")
    assert set(settings_of(load_schema(file))["ids"]["n"]) == {
        "column",
        "type",
        "separator",
        "min_count",
        "vocabulary",
        "part",
        "format",
    }
