"""Converts plain columns to ids, numbers and times; values that don't fit are refused with their place.

Shapes: N rows, M values of all rows together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Place
from persia_hpc.preprocess.ids import string_ids
from persia_hpc.preprocess.kinds import Lengths, check_type, flatten, is_list
from persia_hpc.preprocess.rules import as_truth
from persia_hpc.samples.ids import MISSING_ID, RARE_ID, Ids, hash_strings

Numbers = npt.NDArray[np.float64]

# Not "007": as a number that would be the same id as "7". But "7.0", as floats are written.
INTEGER_PATTERN = r"^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.0+)$"
_WHOLE = r"\.0+$"
TIME_PARTS = ("hour", "weekday", "day", "month")
LOG_SQUARE = "log_square"  # what stands for a number as an id, see `log_squares`
NUMBER = "number"  # the number is the weight of an id, 0
PARTS = (*TIME_PARTS, LOG_SQUARE, NUMBER)
BETWEEN = "\x1f"  # the values of a cross: ASCII's unit separator
_YEAR_9999 = 253_402_300_799  # its last second; milliseconds since 1970 are mostly more
# From here on floats leave out whole numbers.
_FLOAT_ENDS: dict[Any, int] = {pl.Float32: 1 << 24, pl.Float64: 1 << 53}


def split_lists(column: pl.Series, separator: str) -> tuple[pl.Series, Lengths]:
    """Splits each string at the separator; returns the parts that aren't empty, and how many each row has.

    Shapes: strings [N] become parts [M] and lengths [N].
    """
    lists = column.fill_null("").str.split(separator)
    lengths = lists.list.len().to_numpy().astype(np.int64)
    parts = lists.explode().str.strip_chars()
    keep = (parts != "").to_numpy()
    # Every list has at least one part, an empty one if need be, as reduceat wants it.
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    kept: Lengths = np.add.reduceat(keep.astype(np.int64), starts) if len(lengths) else lengths
    return parts.filter(pl.Series(keep)), kept


def split_places(column: pl.Series, separator: str) -> tuple[pl.Series, Lengths]:
    """Splits as `split_lists`, but keeps the empty parts as nulls; an empty string has no part.

    Shapes: strings [N] become parts [M] and lengths [N].
    """
    filled = column.fill_null("").str.strip_chars() != ""
    parts = column.filter(filled).str.split(separator)
    lengths = np.zeros(len(column), np.int64)
    lengths[filled.to_numpy()] = parts.list.len().to_numpy()
    stripped = parts.explode().str.strip_chars()
    return stripped.set(stripped == "", None), lengths


def id_type(values: pl.Series) -> str:
    """Returns `integer` or `string`: how to read the ids of a plain column when the user doesn't say."""
    if is_list(values.dtype):
        values = flatten(values)[0]
    if values.dtype == pl.String:
        known = values.drop_nulls()
        if not len(known):
            return "string"
        if bool(known.str.contains(INTEGER_PATTERN).all()):
            return "integer"
        return "integer" if bool(known.str.to_lowercase().is_in(["true", "false"]).all()) else "string"
    return "string" if values.dtype == pl.Date else "integer"


def to_ids(values: pl.Series, kind: str, place: Place) -> Ids:
    """Returns the ids of the values: strings are hashed, integers are kept, null becomes `MISSING_ID`.

    kind: `string` or `integer`
    Shapes: [M] uint64.
    Raises UserError for a type that can't be ids, a value that is no integer where `kind` asks for one, and
    a reserved id.
    """
    check_type(values.dtype, "id", place)
    if kind == "string":
        ids = np.full(len(values), MISSING_ID, np.uint64)
        ids[values.is_not_null().to_numpy()] = string_ids(_texts(values, place).drop_nulls())
        return ids
    expected = 'an integer for an id (for other ids set type = "string")'
    if values.dtype.is_float() or values.dtype.is_decimal():
        expected = "a whole number for an id (for other ids convert the column to text)"
    ids = to_integers(values, place, expected)
    reserved = ids - np.uint64(MISSING_ID) <= RARE_ID - MISSING_ID  # smaller ones wrap around
    place.refuse(
        reserved, f"an id other than {MISSING_ID} and {RARE_ID}, which stand for missing and rare ones"
    )
    return np.where(values.is_null().to_numpy(), np.uint64(MISSING_ID), ids) if values.null_count() else ids


def _texts(values: pl.Series, place: Place) -> pl.Series:
    """Returns the values as text that any file of them would hold.

    Raises UserError for floats, decimals and Booleans, which are written in several ways.
    """
    if values.dtype.is_float() or values.dtype.is_decimal() or values.dtype == pl.Boolean:
        place.refuse(
            values.is_not_null().to_numpy(),
            'text or integers for type = "string", since this may be written in two ways, as 7.0 and 7 or '
            "true and True; leave `type` out, or convert the column to integers or text",
        )
    return values.cast(pl.String)


def spelled(values: pl.Series, kind: str) -> pl.Series:
    """Returns the values of ids that `to_ids` takes as text, whole numbers without a point.

    Shapes: [M] strings.
    """
    if kind == "integer" and (values.dtype.is_float() or values.dtype == pl.Boolean):
        values = values.cast(pl.Int64)
    text = values.cast(pl.String)
    if kind != "integer" or values.dtype.is_integer():
        return text
    truth = text.str.to_lowercase().replace_strict({"true": "1", "false": "0"}, default=None)
    return truth.fill_null(text.str.replace(_WHOLE, "").replace("-0", "0"))


def to_integers(values: pl.Series, place: Place, expected: str, *, signed: bool = False) -> Ids:
    """Returns whole numbers of 64 bits as two's complement, and 0 for null.

    signed: as times are, refuses those from 2^63 on, and true and false
    Shapes: [M] uint64.
    Raises UserError for values that aren't such numbers, or that are floats too large to be told apart.
    """
    if values.dtype.is_integer() and not values.null_count():
        integers = values.cast(pl.Int64, strict=False)  # polars' calls take longer than the numbers do
        if not integers.null_count():
            return integers.to_numpy().view(np.uint64)
    known = values.is_not_null().to_numpy()
    if values.dtype.is_float():
        numbers = values.fill_null(0).to_numpy()
        place.refuse(~np.isfinite(numbers) | (numbers != np.floor(numbers)), expected)
        end = _FLOAT_ENDS[values.dtype.base_type()]
        place.refuse(
            np.abs(numbers) >= end,
            f"a number below {end} from {values.dtype}, which has no room for all larger ones: write the "
            "column as integers or text",
        )
        values = values.cast(pl.Int64)
    elif values.dtype == pl.Date:
        place.refuse(known, expected)
    elif values.dtype.is_decimal():
        values = values.cast(pl.String).str.replace(_WHOLE, "")
    integers = values.cast(pl.Int64, strict=False)
    if integers.null_count() == values.null_count():
        return integers.fill_null(0).to_numpy().view(np.uint64)
    if values.dtype == pl.String:
        values = _integer_texts(values, truth=not signed)
        integers = values.cast(pl.Int64, strict=False)
    ids = integers.fill_null(0).to_numpy().view(np.uint64)
    fits = integers.is_not_null().to_numpy()
    if not signed:
        large = values.cast(pl.UInt64, strict=False)
        ids = np.where(fits, ids, large.fill_null(0).to_numpy())
        fits = fits | large.is_not_null().to_numpy()
    place.refuse(known & ~fits, expected)
    return ids


def _integer_texts(values: pl.Series, *, truth: bool = True) -> pl.Series:
    """Returns the text with 7 in place of 7.0, and with `truth` 1 and 0 in place of true and false."""
    exact = values.cast(pl.Float64, strict=False).abs() < _FLOAT_ENDS[pl.Float64]
    whole = pl.select(pl.when(exact).then(values.str.replace(_WHOLE, "")).otherwise(values)).to_series()
    if not truth:
        return whole
    return whole.str.replace("(?i)^true$", "1").str.replace("(?i)^false$", "0")


def to_groups(values: pl.Series, place: Place) -> npt.NDArray[np.int64]:
    """Returns a number for each value: integers are kept, other text and dates are hashed.

    Each text is read by itself, so that "7" means the same in all files, whatever else they hold.
    Shapes: [N] int64.
    Raises UserError for a type that can't be a group, a fraction, and a missing value.
    """
    check_type(values.dtype, "group", place)
    place.refuse(values.is_null().to_numpy(), "the group of the row")
    if values.dtype == pl.Date:
        return string_ids(values.cast(pl.String)).view(np.int64)
    if values.dtype != pl.String:
        return to_integers(values, place, "a whole number or text for the group").view(np.int64)
    integers = values.cast(pl.Int64, strict=False)
    other = ~(integers.cast(pl.String) == values).fill_null(False)
    groups = integers.fill_null(0).to_numpy().copy()
    if other.any():
        rest = values.filter(other)
        different = rest.unique()
        numbers = pl.Series(np.array([_group(text) for text in different.to_list()], np.uint64))
        found = rest.replace_strict(different, numbers, return_dtype=pl.UInt64)
        groups[other.to_numpy()] = found.to_numpy().view(np.int64)
    return groups


def _group(text: str) -> int:
    """Returns the integer that the text is, modulo 2^64, or else the hash of the text."""
    truth = as_truth(text)
    if truth is not None:
        return int(truth)
    whole = text.partition(".")[0]
    number = int(whole) if len(whole) <= 20 and re.match(INTEGER_PATTERN, text) else None
    limit = 1 << 53 if "." in text else 1 << 64  # larger floats are no whole numbers
    if number is None or not max(-(1 << 63), -limit) <= number < limit:
        return int(hash_strings([text])[0])
    return number % (1 << 64)


def to_numbers(values: pl.Series, role: str, place: Place, *, missing: float | None = None) -> Numbers:
    """Returns the values as finite numbers, with null and NaN replaced by `missing`.

    role: `label`, `dense` or `weight`
    Shapes: [N] float64.
    Raises UserError for values that are no finite numbers, and for missing ones where `missing` is None.
    """
    check_type(values.dtype, role, place)
    if values.dtype.is_decimal():
        values = values.cast(pl.String)  # which is then read as in a text file
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() > values.null_count():
        numbers = _integer_texts(values).cast(pl.Float64, strict=False)
        place.refuse((values.is_not_null() & numbers.is_null()).to_numpy(), "a number")
    if not numbers.null_count():
        filled = numbers.to_numpy()
        with np.errstate(over="ignore"):
            if np.isfinite(filled.astype(np.float32)).all():
                return filled  # most columns: polars' calls take longer than the numbers do
    if missing is not None:
        numbers = numbers.fill_nan(None)
    else:
        set_missing = " (or set `missing` for this column)" if role == "dense" else ""
        place.refuse(numbers.is_null().to_numpy(), f"a number{set_missing}")
    filled = np.ascontiguousarray(numbers.fill_null(0.0 if missing is None else missing).to_numpy())
    with np.errstate(over="ignore"):
        place.refuse(~np.isfinite(filled.astype(np.float32)), "a finite number")
    return filled


def to_seconds(values: pl.Series, codes: str | None, place: Place) -> npt.NDArray[np.int64]:
    """Returns seconds since 1970, UTC; a date is its midnight.

    codes: strftime codes of text; None: text holds whole seconds
    Shapes: [N] int64.
    Raises UserError for a type that is no time, a value that isn't one, and parts of a second.
    """
    check_type(values.dtype, "time", place)
    expected = "a time in whole seconds since 1970"
    if values.dtype == pl.String and codes is not None:
        place.refuse(values.is_null().to_numpy(), f"a time like {codes!r}")
        values = _datetimes(values, codes)
        expected = f"a time like {codes!r}"
    elif values.dtype == pl.String:
        expected += " (or set `format`)"
    place.refuse(values.is_null().to_numpy(), expected)
    if values.dtype == pl.Date:
        return values.cast(pl.Int64).to_numpy() * 86_400
    if isinstance(values.dtype, pl.Datetime):
        ticks = values.cast(pl.Int64).to_numpy()
        per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[values.dtype.time_unit]
        place.refuse(ticks % per_second != 0, "a time in whole seconds: round or scale it first")
        return ticks // per_second
    return to_integers(values, place, expected, signed=True).view(np.int64)


def time_parts(values: pl.Series, part: str, codes: str | None, place: Place) -> pl.Series:
    """Returns a part of each value, one of `PARTS`, and null for null; times are in UTC.

    codes: as in `to_seconds`
    Hours are 0 to 23, weekdays 1 (Monday) to 7, days of the month 1 to 31, months 1 to 12.
    Shapes: [N] integers.
    Raises UserError as `to_seconds` or `log_squares` does, and for a time after the year 9999.
    """
    if part == LOG_SQUARE:
        return log_squares(values, place)
    check_type(values.dtype, "time", place)
    known = values.drop_nulls()
    if not len(known):
        return pl.Series([None] * len(values), dtype=pl.Int64)
    seconds = to_seconds(values.fill_null(known[0]), codes, place)
    place.refuse(np.abs(seconds) > _YEAR_9999, "a time in seconds since 1970 before the year 10000")
    days = seconds // 86_400
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    found = {
        "hour": seconds % 86_400 // 3600,
        "weekday": (days + 3) % 7 + 1,
        "day": (dates - months).astype(np.int64) + 1,
        "month": months.astype(np.int64) % 12 + 1,
    }[part]
    return pl.select(pl.when(values.is_not_null()).then(pl.Series(found))).to_series()


def log_squares(values: pl.Series, place: Place) -> pl.Series:
    """Returns the integer below ln(x)^2 for each number x > 2, other numbers without fraction; null for null.

    The winners of Criteo's competition made ids of its counts like this.
    Shapes: [N] integers.
    Raises UserError for values that are no finite numbers.
    """
    numbers = to_numbers(values, "dense", place, missing=0.0)  # of nulls; NaN would be the id of 0
    nan = values.cast(pl.Float64, strict=False).is_nan().fill_null(value=False)
    place.refuse(nan.to_numpy(), "a finite number, or no value")
    large = numbers > 2
    squares = np.floor(np.log(np.where(large, numbers, 1.0)) ** 2)
    found = pl.Series(np.where(large, squares, np.trunc(numbers)).astype(np.int64))
    return pl.select(pl.when(values.is_not_null()).then(found)).to_series()


def buckets(values: pl.Series, edges: Sequence[float], place: Place) -> pl.Series:
    """Returns for each number how many of the rising `edges` are at most it; null for null and NaN.

    Shapes: [N] integers from 0 to the number of edges.
    Raises UserError for values that are no finite numbers.
    """
    found = pl.Series(
        np.searchsorted(np.asarray(edges), to_numbers(values, "dense", place, missing=0.0), "right")
    )
    missing = values.is_null() | values.cast(pl.Float64, strict=False).is_nan().fill_null(value=False)
    return found.cast(pl.Int64).set(missing, None)


def crossed(parts: Sequence[tuple[pl.Series, Place]]) -> pl.Series:
    """Returns the texts of several columns in one, parted by a control character; null where any is null.

    Shapes: [N] each, in and out.
    Raises UserError for values that may be written in several ways, as numbers with a fraction.
    """
    texts = [_texts(values, place).alias(str(i)) for i, (values, place) in enumerate(parts)]
    return pl.DataFrame(texts).select(pl.concat_str(pl.all(), separator=BETWEEN)).to_series()


def _datetimes(column: pl.Series, codes: str) -> pl.Series:
    """Returns times parsed by strftime codes, null where a text doesn't match.

    Raises UserError for codes that polars refuses.
    """
    unit: Literal["ns", "us"] = "ns" if re.search(r"%[.:]?[0-9]?f", codes) else "us"  # no part is cut off
    if "%H" in codes and "%M" not in codes:  # polars wants both; full hours are a common form
        column, codes = column + "00", codes + "%M"
    try:
        return column.str.to_datetime(codes, time_unit=unit, strict=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"time.format: got {codes!r}, expected strftime codes ({error})") from error
