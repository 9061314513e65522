"""Types of columns: the table in docs/dataset_format.md says what the code does, for each type and role."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.kinds import ROLES, flatten, kept
from persia_hpc.preprocess.table.convert import Converter, Learned
from persia_hpc.preprocess.table.schema import Dense, Ids, Label, TableSchema, Time

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dataset_format.md"
INTEGERS = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Int128")
SAMPLES = {
    **{name: pl.Series([1, 0], dtype=getattr(pl, name)) for name in (*INTEGERS, "Float32", "Float64")},
    "Decimal": pl.Series([Decimal("1.00"), Decimal("0.00")]),
    "Boolean": pl.Series([True, False]),
    "String": pl.Series(["1", " 0 "]),
    "Categorical": pl.Series(["1", "0"], dtype=pl.Categorical),
    "Enum": pl.Series(["1", "0"], dtype=pl.Enum(["0", "1"])),
    "Binary": pl.Series([b"1", b"0"]),
    "Date": pl.Series([date(2024, 1, 31), date(1969, 12, 31)]),
    "Datetime": pl.Series([datetime(2024, 1, 31, 1), datetime(1969, 12, 31)]),
    "Null": pl.Series([None, None], dtype=pl.Null),
    "Duration": pl.Series([timedelta(1), timedelta(2)]),
    "Time": pl.Series([time(1), time(2)]),
    "Struct": pl.Series([{"a": 1}, {"a": 2}]),
    "List": pl.Series([[1], [2]]),
    "Array": pl.Series([[1], [2]], dtype=pl.Array(pl.Int64, 1)),
    "Object": pl.Series([object(), object()], dtype=pl.Object),
}
MORE = {name: like for name, like in (("Float16", "Float32"), ("UInt128", "Int128")) if hasattr(pl, name)}


def rows() -> tuple[list[str], dict[str, dict[str, str]]]:
    """The roles, and for each type what the table says of them."""
    found = re.search(r"^\| type \|.*?(?=\n\n)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, "the page has no table of types"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    roles = cells[0][1:]
    table = {name: dict(zip(roles, row[1:], strict=True)) for row in cells[2:] for name in row[0].split(", ")}
    return roles, table


_, TABLE = rows()


def schema(role: str) -> TableSchema:
    """A schema that uses column `c` in the role, and others for what it needs besides."""
    return TableSchema(
        labels={"y": Label("c" if role == "label" else "y")},
        dense={"d": Dense("c", missing=0)} if role == "dense" else {},
        ids={"u": Ids("c" if role in ("id", "list of ids") else "u")},
        weight="c" if role == "weight" else None,
        group="c" if role == "group" else None,
        time=Time("c") if role == "time" else None,
    )


def convert(column: pl.Series, role: str) -> None:
    if role == "list of ids":
        column = pl.Series([[value] for value in column.to_list()], dtype=pl.List(column.dtype))
    frame = pl.DataFrame({"c": column, "y": [1, 0], "u": [5, 6]})
    source = Frame(frame, Path("d.parquet"))
    Converter(schema(role), source).batch(source, Learned())


def test_the_table_names_all_roles_and_the_types_that_are_tried() -> None:
    roles, table = rows()
    assert {*roles} == {*ROLES, "list of ids"}
    assert table.keys() == SAMPLES.keys()


@pytest.mark.parametrize("role", [*ROLES, "list of ids"])
@pytest.mark.parametrize("name", [*SAMPLES, *MORE])
def test_the_table_of_types_is_true(name: str, role: str) -> None:
    column = SAMPLES[name] if name in SAMPLES else pl.Series([1, 0], dtype=getattr(pl, name))
    if name == "Object" and role == "list of ids":
        return  # polars has no such lists
    if TABLE[MORE.get(name, name)][role] == "no":
        with pytest.raises(UserError, match=r"^d\.parquet(, row 1)?: c: got ") as refusal:
            convert(column, role)
        assert name in str(refusal.value)
        assert "\n" not in str(refusal.value)
    else:
        convert(column, role)


def test_arrays_of_fixed_size_are_lists_and_nulls_are_left_out() -> None:
    values, lengths = flatten(pl.Series([[1, 2], None, [3, None]], dtype=pl.Array(pl.Int64, 2)))
    assert (values.to_list(), lengths.tolist()) == ([1, 2, 3, None], [2, 0, 2])
    values, lengths = kept(values, lengths)
    assert (values.to_list(), lengths.tolist()) == ([1, 2, 3], [2, 0, 1])
    assert kept(pl.Series([], dtype=pl.Int64), np.zeros(2, np.int64))[1].tolist() == [0, 0]


@pytest.mark.parametrize("role", ["label", "dense", "weight", "group", "time"])
def test_a_list_can_only_be_ids(role: str) -> None:
    for dtype in (pl.List(pl.Int64), pl.Array(pl.Int64, 1)):
        with pytest.raises(UserError, match=r"^d\.parquet: c: got (List|Array)\(Int64"):
            convert(pl.Series([[1], [0]], dtype=dtype), role)
