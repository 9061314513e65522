"""The same data as CSV, TSV, Parquet and Arrow make the same samples, for all types and roles."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persia_hpc.errors import UserError
from persia_hpc.preprocess.columns import TIME_PARTS, spelled, time_parts
from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.table.convert import Converter, Learned
from persia_hpc.preprocess.table.input import cut_table, read_frames
from persia_hpc.preprocess.table.schema import Dense, Ids, Label, TableSchema, Time
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.ids import MISSING_ID

STAMP = "%Y-%m-%d %H:%M:%S"
words = st.sampled_from(["a", " b ", "", "NA", "7", "-1", "007", "true", "False", "1.5", "7.0", "é"])
halves = st.integers(-20, 20).map(lambda n: n / 2)
wholes = st.integers(-(2**20), 2**20).map(float)
days = st.dates(date(1900, 1, 1), date(2100, 1, 1))
stamps = st.integers(-(2**31), 2**33).map(lambda s: datetime(1970, 1, 1) + timedelta(seconds=s))


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(low, high), st.integers(max(low, -2), 2), st.just(-1 if low else 1))


KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "Int8": (pl.Int8, integers(-128, 127)),
    "Int64": (pl.Int64, integers(-(2**63), 2**63 - 1)),
    "UInt32": (pl.UInt32, integers(0, 2**32 - 1)),
    "UInt64": (pl.UInt64, integers(0, 2**64 - 1)),
    "Int128": (pl.Int128, integers(-(2**63) - 1, 2**64)),
    "Float64": (pl.Float64, st.one_of(wholes, wholes, halves, st.just(math.nan))),
    "Float32": (pl.Float32, st.one_of(wholes, halves)),
    "Decimal": (pl.Decimal(20, 2), st.one_of(wholes, halves).map(lambda x: Decimal(f"{x:.2f}"))),
    "Boolean": (pl.Boolean, st.booleans()),
    "String": (pl.String, words),
    "Categorical": (pl.Categorical, words),
    "Enum": (pl.Enum(["a", " b ", "NA", "7", "-1", "true"]), st.sampled_from(["a", " b ", "7", "true"])),
    "Binary": (pl.Binary, words.map(str.encode)),
    "Date": (pl.Date, days),
    "Datetime": (pl.Datetime("us"), stamps),
    "Datetime of a zone": (pl.Datetime("ms", "UTC"), stamps),
    "Null": (pl.Null, st.none()),
}
ROLES = ("label", "id", "list", "array", "dense", "weight", "group", "time")


@dataclass(frozen=True)
class Case:
    """A column of values, its type, what it is used for, and how it is written as text."""

    kind: str
    role: str
    values: Sequence[Any]
    schema: TableSchema
    upper: bool  # True and NaN as pandas writes them, or true and nan

    def text(self, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, (list, tuple)):
            return "|".join(map(self.text, value))
        if isinstance(value, bool) or value != value:
            written = {True: "True", False: "False"}.get(value, "NaN")
            return written if self.upper else written.lower()
        if isinstance(value, datetime):
            return value.strftime(STAMP)
        return value.decode() if isinstance(value, bytes) else str(value)

    def write(self, folder: Path) -> list[Path]:
        count = len(self.values)
        names = [folder / f"d.{ending}" for ending in ("csv", "tsv", "parquet", "feather")]
        rows = [(i % 2, i, self.text(value)) for i, value in enumerate(self.values)]
        for path, separator in zip(names[:2], ",\t", strict=True):
            with path.open("w", newline="") as file:
                csv.writer(file, delimiter=separator, lineterminator="\n").writerows([("y", "u", "c"), *rows])
        dtype = KINDS[self.kind][0]
        if self.role in ("list", "array"):
            dtype = pl.List(dtype) if self.role == "list" else pl.Array(dtype, 2)
        column = pl.Series("c", self.values, dtype=dtype, strict=False)
        frame = pl.DataFrame({"y": [i % 2 for i in range(count)], "u": range(count), "c": column})
        frame.write_parquet(names[2])
        frame.write_ipc(names[3])
        return names


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind, role = draw(st.sampled_from(list(KINDS))), draw(st.sampled_from(ROLES))
    value = st.one_of(st.none(), KINDS[kind][1]) if draw(st.booleans()) else KINDS[kind][1]
    if kind == "Null":
        value = st.none()
    if role == "list":
        value = st.one_of(st.none(), st.lists(value, max_size=3))
    elif role == "array":
        value = st.one_of(st.none(), st.lists(value, min_size=2, max_size=2))
    values = draw(st.lists(value, min_size=1, max_size=8))
    type_ = draw(st.sampled_from(["auto", "auto", "string", "integer"]))
    positive = draw(st.sampled_from([None, "1", "a", "true", "-1", "7.0", "2000-01-01"]))
    uses: dict[str, dict[str, Any]] = {
        "label": {"labels": {"y": Label("c", positive, binary=draw(st.booleans()))}},
        "id": {"ids": {"c": Ids("c", type_)}},
        "dense": {"dense": {"c": Dense("c", missing=draw(st.sampled_from([None, 0.5])))}},
        "weight": {"weight": "c"},
        "group": {"group": "c"},
        "time": {"time": Time("c", {"Date": "%Y-%m-%d"}.get(kind, STAMP if "Datetime" in kind else None))},
    }
    uses["list"] = uses["array"] = {"ids": {"c": Ids("c", type_, separator="|")}}
    missing = draw(st.sampled_from([(), ("NA",), ("-1", "NA"), ("7", "true"), ("nan", "NaN", "1900-01-01")]))
    schema = TableSchema({"y": Label("y")}, {}, {"u": Ids("u")}, missing=missing)
    return Case(kind, role, values, replace(schema, **uses[role]), draw(st.booleans()))


def outcome(path: Path, schema: TableSchema) -> SampleBatch | str:
    """The samples, also in several pieces, or the message."""
    try:
        frames = [frame for piece in cut_table(path, schema, 1 << 20) for frame in read_frames(piece, schema)]
        converter = Converter(schema, frames[0])
        return SampleBatch.concatenate([converter.batch(frame, Learned()) for frame in frames])
    except UserError as error:
        message = str(error)
    assert "\n" not in message, "more than one line"
    assert path.name in message, "the file is not named"
    return message


def assert_same(one: SampleBatch, other: SampleBatch) -> None:
    for name in ("dense", "labels", "weight", "group", "time"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name, column in one.ids.items():
        np.testing.assert_array_equal(column.values, other.ids[name].values, err_msg=name)
        np.testing.assert_array_equal(column.offsets, other.ids[name].offsets, err_msg=name)


def only_text_has_a_meaning(case: Case) -> bool:
    """Whether the column's type is refused where the same text, which has no type, is accepted."""
    ids = case.role in ("id", "list", "array")
    if case.kind in ("Float64", "Float32", "Decimal"):  # text may be a name: "1.5", "7.0", "NaN"
        return case.role in ("label", "group") or (ids and case.schema.ids["c"].type != "integer")
    if case.kind == "Int128":  # too large for an id, but not for a name
        return case.role == "group" or (ids and case.schema.ids["c"].type == "auto")
    if case.kind == "Boolean":
        return ids and case.schema.ids["c"].type == "string"
    if "Date" in case.kind:
        return case.role in ("label", "dense") or (case.kind != "Date" and case.role != "time")
    return False


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_all_formats_make_the_same_samples(tmp_path: Path, case: Case) -> None:
    text, tsv, typed, arrow = (outcome(path, case.schema) for path in case.write(tmp_path))
    if isinstance(typed, str) or isinstance(text, str):
        assert isinstance(tsv, str) == isinstance(text, str)
        assert isinstance(arrow, str) == isinstance(typed, str)
        if not (isinstance(typed, str) and isinstance(text, str)):
            assert isinstance(typed, str), typed
            assert only_text_has_a_meaning(case), typed
        return
    assert not isinstance(tsv, str)
    assert not isinstance(arrow, str)
    for other in (tsv, typed, arrow):
        assert_same(text, other)
    check_values(case, text)


def hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def check_values(case: Case, batch: SampleBatch) -> None:
    """Numbers against a reference in plain Python."""
    if case.schema.missing or case.kind not in (
        "Int8",
        "Int64",
        "UInt32",
        "UInt64",
        "Int128",
        "Boolean",
        "Date",
    ):
        return
    values = case.values
    if case.role == "dense":
        expected = [case.schema.dense["c"].missing if v is None else v for v in values]
        assert batch.dense[:, 0].tolist() == [float(np.float32(float(v))) for v in expected]
    elif case.role == "id":
        as_text = case.kind == "Date" or case.schema.ids["c"].type == "string"
        whole = [None if v is None else hashed(str(v)) if as_text else int(v) for v in values]
        assert batch.ids["c"].values.tolist() == [MISSING_ID if v is None else v % 2**64 for v in whole]
    elif case.role == "group" and case.kind != "Date":
        assert [v % 2**64 for v in batch.group.tolist()] == [int(v) % 2**64 for v in values]
    elif case.role == "time":
        start = date(1970, 1, 1)
        assert batch.time.tolist() == [
            (v - start).days * 86_400 if case.kind == "Date" else v for v in values
        ]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (pl.Series([7.0, -0.0, None]), "integer", ["7", "0", None]),
        (pl.Series(["7.0", "007", "TRUE", "-0.0"]), "integer", ["7", "007", "1", "0"]),
        (pl.Series([Decimal("7.00"), Decimal("-7.00")]), "integer", ["7", "-7"]),
        (pl.Series([True, False]), "integer", ["1", "0"]),
        (pl.Series([True, False]), "string", ["true", "false"]),
        (pl.Series(["7.0", "a"]), "string", ["7.0", "a"]),
    ],
)
def test_vocabularies_spell_whole_numbers_alike(values: pl.Series, kind: str, expected: list[str]) -> None:
    assert spelled(values, kind).to_list() == expected


@given(st.lists(st.none() | st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), min_size=1, max_size=9))
@settings(deadline=None)
def test_parts_of_times_are_those_of_the_calendar(times: list[datetime | None]) -> None:
    times = [time and time.replace(microsecond=0) for time in times]
    seconds = [None if t is None else (t - datetime(1970, 1, 1)) // timedelta(seconds=1) for t in times]
    expected = {
        part: [t and (t.isoweekday() if part == "weekday" else getattr(t, part)) for t in times]
        for part in TIME_PARTS
    }
    written = [None if time is None else time.isoformat(" ") for time in times]
    columns = {
        "datetime": (pl.Series(times, dtype=pl.Datetime("us")), None),
        "seconds": (pl.Series(seconds, dtype=pl.Int64), None),
        "numbers as text": (pl.Series([s if s is None else str(s) for s in seconds], dtype=pl.String), None),
        "text": (pl.Series(written, dtype=pl.String), STAMP),
    }
    for column, codes in columns.values():
        place = Place(Frame(column.to_frame("c"), Path("d.parquet")), "c")
        for part in TIME_PARTS:
            assert time_parts(column, part, codes, place).to_list() == expected[part]


@pytest.mark.parametrize(
    ("values", "codes", "said"),
    [
        (pl.Series([0, 1_700_000_000_000]), None, "row 2: c: got 1700000000000 .*before the year 10000"),
        (pl.Series(["2024-01-01", "monday"]), "%Y-%m-%d", "row 2: c: got 'monday' .*a time like '%Y-%m-%d'"),
        (pl.Series([1.5]), None, "row 1: c: got 1.5 .*a time in whole seconds"),
        (pl.Series([True]), None, "c: got Boolean, expected whole seconds"),
        (pl.Series([[1]]), None, r"c: got List\(Int64\), expected whole seconds"),
    ],
)
def test_what_has_no_part_of_a_time_is_refused(values: pl.Series, codes: str | None, said: str) -> None:
    place = Place(Frame(values.to_frame("c"), Path("d.parquet")), "c")
    with pytest.raises(UserError, match=said):
        time_parts(values, "hour", codes, place)


@pytest.mark.parametrize("values", [pl.Series([1.0, float("nan")]), pl.Series(["1", "nan"])])
def test_nan_has_no_squared_logarithm(values: pl.Series) -> None:
    with pytest.raises(UserError, match=r"row 2: x: got .*nan.*, expected a finite number, or no value"):
        time_parts(values, "log_square", None, Place(Frame(values.to_frame("x"), Path("x.parquet")), "x"))


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e9), st.integers(-5, 5)), min_size=1, max_size=20))
def test_squared_logarithms(numbers: list[float | None]) -> None:
    column = pl.Series("x", numbers, dtype=pl.Float64, strict=False)
    found = time_parts(column, "log_square", None, Place(Frame(column.to_frame(), Path("x.csv")), "x"))
    for got, x in zip(found.to_list(), numbers, strict=True):
        assert got == (None if x is None else math.floor(np.log(x) ** 2) if x > 2 else math.trunc(x))
