"""Conversion of a table's columns by type: small inputs with their right results."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persia_hpc.cli import main
from persia_hpc.errors import UserError
from persia_hpc.preprocess.table import prepare as table
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.ids import MISSING_ID, hash_strings
from persia_hpc.samples.source import open_source

HEAD = 'files = ["{}"]\nsplit.fractions.train = 1.0\n'


def converted(folder: Path, frame: pl.DataFrame, schema: str) -> SampleBatch:
    frame.write_parquet(folder / "d.parquet")
    (folder / "s.toml").write_text(HEAD.format("d.parquet") + schema)
    table.prepare(table.TableOptions(folder / "out", folder / "s.toml", overwrite=True))
    source = open_source([str(folder / "out" / "train.h5")])
    return source.read(0, source.num_samples)


def one(folder: Path, values: Any, schema: str) -> SampleBatch:
    """A column `c` beside a label and an id."""
    column = values if isinstance(values, pl.Series) else pl.Series(values)
    frame = pl.DataFrame({"c": column}).with_columns(y=pl.int_range(pl.len()) % 2, u=1)
    return converted(folder, frame, schema)


def ids(batch: SampleBatch) -> tuple[list[int], list[int] | None]:
    column = batch.ids["c"]
    return column.values.tolist(), None if column.offsets is None else column.offsets.tolist()


ID = "[labels.y]\n[ids.c]\n"
a, b, c = hash_strings(["a", "b", "c"]).tolist()


@pytest.mark.parametrize(
    ("values", "schema", "expected"),
    [
        (pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)), ID, ([1, 2, 3, 4], [0, 2, 4])),
        ([["a", " b "], [""], ["NA", "c"], None], 'missing=["NA"]\n' + ID, ([a, b, c], [0, 2, 2, 3, 3])),
        (
            ["a| b ", "", "NA|c", None],
            'missing=["NA"]\n' + ID + 'separator="|"',
            ([a, b, c], [0, 2, 2, 3, 3]),
        ),
        ([[1, None, -1], []], "missing=-1\n" + ID, ([1], [0, 1, 1])),
        ([7, None, -1], ID + 'separator="|"', ([7, 2**64 - 1], [0, 1, 1, 2])),
        (pl.Series([["a"], ["b"]], dtype=pl.List(pl.Categorical)), ID, ([a, b], [0, 1, 2])),
        (pl.Series([None, None], dtype=pl.Null), ID, ([MISSING_ID] * 2, None)),
        (pl.Series([[None], []], dtype=pl.List(pl.Null)), ID, ([], [0, 0, 0])),
        ([-1, 7, 0, -1], 'missing=["-1", "-999"]\n' + ID, ([MISSING_ID, 7, 0, MISSING_ID], None)),
        ([-1.0, 7.0, -0.0], "missing=[-1]\n" + ID, ([MISSING_ID, 7, 0], None)),
        ([Decimal("13.00"), None], ID, ([13, MISSING_ID], None)),
        ([True, False, None], ID, ([1, 0, MISSING_ID], None)),
        ([b"a", b" b", None], ID, ([a, b, MISSING_ID], None)),
        ([date(2024, 1, 31)], ID, (hash_strings(["2024-01-31"]).tolist(), None)),
        (pl.Series([7], dtype=pl.Int32), ID + 'type="string"', (hash_strings(["7"]).tolist(), None)),
        (pl.Series([2**63 + 5], dtype=pl.UInt64), ID, ([2**63 + 5], None)),
        (pl.Series([2**63 + 5], dtype=pl.Int128), ID, ([2**63 + 5], None)),
    ],
)
def test_ids(tmp_path: Path, values: Any, schema: str, expected: tuple[list[int], list[int] | None]) -> None:
    assert ids(one(tmp_path, values, schema)) == expected


DENSE = "[labels.y]\n[ids.u]\n[dense.c]\nmissing = 0\n"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([None, None], dtype=pl.Null), [0, 0]),
        ([-999.0, 1.0, float("nan")], [0, 1, 0]),
        (["-999.0", "1", "NaN", " 2e1 ", "true", "-nan", "+NAN"], [0, 1, 0, 20, 1, 0, 0]),
        ([Decimal("-999.00"), Decimal("0.10")], [0, 0.1]),
        ([True, None, False], [1, 0, 0]),
    ],
)
def test_numbers(tmp_path: Path, values: Any, expected: list[float]) -> None:
    dense = one(tmp_path, values, 'missing = ["-1", "-999"]\n' + DENSE).dense[:, 0]
    assert dense.tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ([1.0, 0.0], "1"),
        ([1, 0], '"1.0"'),
        (["1.0", "0.0"], "1"),
        (["1", "01"], "1"),
        ([True, False], "1"),
        ([True, False], '"True"'),
        ([True, False], "true"),
        (["TRUE", "FALSE"], "true"),
        ([Decimal("1.00"), Decimal("0.50")], "1"),
        ([" yes ", "Yes"], '"yes"'),
        ([0, 1], "false"),
        (pl.Series(["p", "n"], dtype=pl.Enum(["n", "p"])), '"p"'),
        ([2**53 + 1, 2**53], str(2**53 + 1)),
        (pl.Series([0.1, 0.2], dtype=pl.Float32), "0.1"),
    ],
)
def test_positive_is_compared_by_type(tmp_path: Path, values: Any, positive: str) -> None:
    batch = one(tmp_path, values, f"[ids.u]\n[labels.c]\npositive = {positive}\n")
    assert batch.labels[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        ([date(1970, 1, 2), date(1969, 12, 31)], "", [86_400, -86_400]),
        ([datetime(1970, 1, 1, 0, 0, 5), datetime(1969, 12, 31, 23, 59, 59)], "", [5, -1]),
        (pl.Series([-1000, 7000]).cast(pl.Datetime("ms")), "", [-1, 7]),
        (pl.Series([10**9]).cast(pl.Datetime("ns")), "", [1]),
        ([datetime(2024, 7, 1, tzinfo=timezone.utc)], "", [1_719_792_000]),
        (pl.Series([datetime(2024, 7, 1)]).dt.replace_time_zone("Europe/Amsterdam"), "", [1_719_784_800]),
        (["2024-07-01T02:00:00+0200"], 'format = "%Y-%m-%dT%H:%M:%S%z"', [1_719_792_000]),
        (["5", "6.0", "-7"], "", [5, 6, -7]),
        ([5.0, -7.0], "", [5, -7]),
        ([Decimal("5.00")], "", [5]),
    ],
)
def test_times(tmp_path: Path, values: Any, more: str, expected: list[int]) -> None:
    batch = one(tmp_path, values, f'[labels.y]\n[ids.u]\n[time]\ncolumn = "c"\n{more}\n')
    assert batch.time is not None
    assert batch.time.tolist() == expected


TIME = 'time = "c"\n[labels.y]\n[ids.u]\n'
FRACTION = '[labels.y]\n[ids.u]\n[time]\ncolumn = "c"\nformat = "%H:%M:%S%.f %Y-%m-%d"\n'


@pytest.mark.parametrize(
    ("values", "schema", "message"),
    [
        (
            [Decimal("13.00"), Decimal("12.50")],
            ID,
            r"row 2: c: got 12\.50 \(Decimal.*expected a whole number",
        ),
        ([1.0, 2.0**53], ID, r"row 2: c: got 9007199254740992\.0 \(Float64\), expected a number below 90071"),
        (
            pl.Series([2.0**24], dtype=pl.Float32),
            ID,
            r"row 1: c: got 16777216\.0 \(Float32\), .*below 16777216",
        ),
        ([7.0], ID + 'type="string"', r"row 1: c: got 7\.0 \(Float64\), expected text or integers for type"),
        ([[], [1.0, 2.5]], ID, r"row 2: c: got 2\.5 in a list \(List\(Float64\)\), expected a whole"),
        (
            [["1"], ["2", "x"]],
            ID + 'type="integer"',
            r"row 2: c: got 'x' in a list \(List\(String\)\), expected",
        ),
        ([b"a", b"\xff"], ID, r"row 2: c: got b'\\xff' \(Binary\), expected UTF-8 text"),
        ([[b"a"], [b"b", b"\xff"]], ID, r"row 2: c: got b'\\xff' in a list"),
        (pl.Series([2**64], dtype=pl.Int128), ID, r"row 1: c: got 18446744073709551616 \(Int128\)"),
        ([{"a": 1}], ID, r"d\.parquet: c: got Struct\(.*\), expected integers, whole"),
        ([[[1]]], ID, r"d\.parquet: c: got List\(List\(Int64\)\), expected integers, whole"),
        ([datetime(2024, 1, 1)], ID, r"d\.parquet: c: got Datetime.*, expected integers, whole"),
        (
            [date(2024, 1, 1)],
            ID + 'type = "integer"',
            r"row 1: c: got 2024-01-01 \(Date\), expected an integer",
        ),
        ([[1.0]], DENSE, r"d\.parquet: c: got List\(Float64\), expected numbers, Boolean"),
        ([date(2024, 1, 1)], DENSE, r"d\.parquet: c: got Date, expected numbers, Boolean"),
        ([1500000000.5], TIME, r"row 1: c: got 1500000000\.5 \(Float64\), expected a time in whole seconds"),
        ([-1.5], TIME, r"row 1: c: got -1\.5 \(Float64\), expected a time in whole seconds"),
        ([True], TIME, r"d\.parquet: c: got Boolean, expected whole seconds"),
        ([None, 5], TIME, r"row 1: c: got no value \(Int64\), expected a time"),
        (
            pl.Series([2**63], dtype=pl.UInt64),
            TIME,
            r"row 1: c: got 9223372036854775808 \(UInt64\), expected a",
        ),
        (
            [datetime(1970, 1, 1, 0, 0, 0, 1)],
            TIME,
            r"row 1: c: got 1970-01-01 00:00:00\.000001 \(Date.*whole sec",
        ),
        (["00:00:00.0000001 1970-01-01"], FRACTION, r"row 1: c: got '00:00:00\.0000001 .*whole seconds"),
        (
            [1.0, float("nan")],
            "[ids.u]\n[labels.c]\npositive = 1",
            r"row 2: c: got nan .*every row needs a label",
        ),
        (["1", "NaN"], "[ids.u]\n[labels.c]\npositive = 1", r"row 2: c: got 'NaN' .*every row needs a label"),
        (
            ["1", "-nan"],
            "[ids.u]\n[labels.c]\npositive = 1",
            r"row 2: c: got '-nan' .*needs a label",
        ),
        (["1", "-nan"], "[ids.u]\n[labels.c]", r"row 2: c: got '-nan'"),
        (["1", "-nan"], "weight = 'c'\n[ids.u]", r"row 2: c: got '-nan'"),
        ([1, -1], "missing = -1\n[ids.u]\n[labels.c]", r"row 2: c: got -1 \(Int64\), expected a number$"),
    ],
)
def test_what_has_no_exact_value_is_refused_in_one_line(
    tmp_path: Path, values: Any, schema: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        one(tmp_path, values, schema)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("quote", ["", '"'])
def test_lines_that_end_in_a_bare_carriage_return(
    tmp_path: Path, quote: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text(HEAD.format("d.csv") + "[labels.y]\n[ids.t]\n")
    command = ["preprocess", "table", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    for text, line in ((f"y,t\r1,{quote}2{quote}\r", 1), (f"y,t\n0,{quote}2{quote}\n1,3\r0,4\r\n", 3)):
        (tmp_path / "d.csv").write_text(text, newline="")
        assert main(command) == 2
        assert f"d.csv:{line}: got " in capsys.readouterr().err


def test_a_quoted_value_may_be_long_and_hold_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('y,t\n1,"' + "x\r" * 100_000 + '"\n0,\n0,"', newline="")
    (tmp_path / "s.toml").write_text(HEAD.format("d.csv") + "[labels.y]\n[ids.t]\n")
    with (tmp_path / "d.csv").open("a", newline="") as file:
        file.write('a"\nx,"b"\n')
    with pytest.raises(UserError, match=r"d\.csv:5: y: got 'x', expected a number"):
        table.prepare(table.TableOptions(tmp_path / "out", tmp_path / "s.toml"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2, 1], ('"1"', "2")),
        ([1.0, 2.0, 1.0], ("1", '"2"')),
        ([" 1.0", "2", "1"], ("1", "2")),
        ([True, False, True], ("true", "false")),
        ([date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 1)], ('"2024-01-01"', '"2024-01-02"')),
        (pl.Series(["a", "b", "a"], dtype=pl.Categorical), ('"a"', '"b"')),
    ],
)
def test_splits_are_told_by_type(tmp_path: Path, values: Any, words: tuple[str, str]) -> None:
    frame = pl.DataFrame({"c": values, "y": [0, 1, 1], "u": [5, 6, 7]})
    frame.write_ipc(tmp_path / "d.arrow")
    train, test = words
    schema = (
        f'[labels.y]\n[ids.u]\n[split]\nby="column"\ncolumn="c"\nvalues={{train=[{train}],test=[{test}]}}\n'
    )
    (tmp_path / "s.toml").write_text('files = ["d.arrow"]\n' + schema)
    table.prepare(table.TableOptions(tmp_path / "out", tmp_path / "s.toml"))
    for name, expected in (("train", [5, 7]), ("test", [6])):
        source = open_source([str(tmp_path / "out" / f"{name}.h5")])
        assert source.read(0, source.num_samples).ids["u"].values.tolist() == expected
    (tmp_path / "s.toml").write_text('files = ["d.arrow"]\n' + schema.replace(f"test=[{test}]", "test=[99]"))
    with pytest.raises(UserError, match=r"d\.arrow, row 2: c: got .*, expected one of "):
        table.prepare(table.TableOptions(tmp_path / "other", tmp_path / "s.toml"))


@pytest.mark.parametrize("ending", ["parquet", "feather"])
def test_files_that_polars_cannot_read_are_named(tmp_path: Path, ending: str) -> None:
    """Cut off, and with the compressed values of one column overwritten."""
    frame = pl.DataFrame({"y": [i % 2 for i in range(5000)], "u": [f"{i**3}" for i in range(5000)]})
    path = tmp_path / f"d.{ending}"
    if ending == "parquet":
        frame.write_parquet(path, compression="zstd")
    else:
        frame.write_ipc(path, compression="zstd")
    whole = path.read_bytes()
    (tmp_path / "s.toml").write_text(HEAD.format(path.name) + "[labels.y]\n[ids.u]\n")
    half = len(whole) // 2  # within column `u`
    for data, column in ((whole[:-9], ""), (whole[:half] + bytes(400) + whole[half + 400 :], "u: ")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"d\.{ending}: {column}.*can't be read") as refusal:
            table.prepare(table.TableOptions(tmp_path / "out", tmp_path / "s.toml"))
        assert "\n" not in str(refusal.value)
