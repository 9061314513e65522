"""Converts columns of a frame to ids and numbers; values that don't fit are refused with their place.

Shapes: N rows, M values of all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Frame
from persia_hpc.preprocess.ids import MISSING_ID, RARE_ID, Ids, string_ids

Numbers = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]

# Not "007": as a number that would be the same id as "7".
INTEGER_PATTERN = r"^(0|-?[1-9][0-9]*)$"


def cleaned(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """Returns strings stripped of spaces, with null for empty ones and for the words of `missing`.

    Columns of other types are returned unchanged.
    """
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return column
    stripped = column.str.strip_chars()
    words = pl.Series(["", *missing], dtype=pl.String)
    return stripped.set(stripped.is_in(words.implode()), None)


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


def flatten(column: pl.Series) -> tuple[pl.Series, Lengths]:
    """Returns the values of a list column in one series, and how many each row has.

    Null and empty lists have none.
    Shapes: lists [N] become values [M] and lengths [N].
    """
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    values = column.filter(pl.Series(lengths > 0)).explode()
    return values, lengths


def id_type(column: pl.Series) -> str:
    """Returns `integer` or `string`: how to read the ids of this column when the user doesn't say."""
    if isinstance(column.dtype, pl.List):
        column = flatten(column)[0]
    if column.dtype == pl.String:
        known = column.drop_nulls()
        return "integer" if len(known) and bool(known.str.contains(INTEGER_PATTERN).all()) else "string"
    return "integer"


@dataclass(frozen=True)
class Place:
    """Says where the values of a column come from, for error messages.

    owner: row of each value [M]; None if each row has one value
    """

    source: Frame
    column: str
    owner: npt.NDArray[np.int64] | None = None

    def refuse(self, bad: npt.NDArray[np.bool_], expected: str) -> None:
        """Refuses the column if any of `bad` [M] is True, naming the row of the first such value.

        Raises UserError as `Frame.refuse` does.
        """
        if self.owner is not None:
            rows = np.zeros(self.source.frame.height, bool)
            rows[self.owner[bad]] = True
            bad = rows
        self.source.refuse(bad, self.column, expected)


def to_ids(values: pl.Series, kind: str, place: Place) -> Ids:
    """Returns the ids of the values: strings are hashed, integers are kept, null becomes `MISSING_ID`.

    kind: `string` or `integer`
    Shapes: [M] uint64.
    Raises UserError for a value that is no integer where `kind` asks for one, or that is a reserved id.
    """
    known = values.is_not_null().to_numpy()
    ids = np.full(len(values), MISSING_ID, np.uint64)
    if kind == "string":
        ids[known] = string_ids(values.drop_nulls().cast(pl.String))
        return ids
    if values.dtype.is_float():
        whole = values.fill_null(0).to_numpy()
        place.refuse(~np.isfinite(whole) | (whole != np.floor(whole)), "whole numbers for ids")
    integers = values.cast(pl.Int64, strict=False)
    # Unsigned ids above 2^63 - 1 don't fit there.
    large = values.cast(pl.UInt64, strict=False)
    fits, fits_large = integers.is_not_null().to_numpy(), large.is_not_null().to_numpy()
    why = 'an integer for an id (for other ids set type = "string")'
    place.refuse(known & ~fits & ~fits_large, why)
    ids[fits] = integers.drop_nulls().to_numpy().view(np.uint64)
    ids[fits_large] = large.drop_nulls().to_numpy()
    reserved = known & ((ids == MISSING_ID) | (ids == RARE_ID))
    place.refuse(
        reserved, f"an id other than {MISSING_ID} and {RARE_ID}, which stand for missing and rare ones"
    )
    return ids


def to_numbers(values: pl.Series, place: Place, *, missing: float | None) -> Numbers:
    """Returns the values as finite numbers, with null (in typed files also NaN) replaced by `missing`.

    Shapes: [N] float64.
    Raises UserError for values that are no finite numbers, and for missing ones where `missing` is None.
    """
    if not (values.dtype.is_numeric() or values.dtype in (pl.String, pl.Boolean)):
        raise UserError(f"{place.source.path}: {place.column}: got {values.dtype}, expected numbers")
    numbers = values.cast(pl.Float64, strict=False)
    if values.dtype.is_float() and missing is not None:
        numbers = numbers.fill_nan(None)
    place.refuse(
        (values.is_not_null() & values.cast(pl.Float64, strict=False).is_null()).to_numpy(), "a number"
    )
    if missing is None:
        place.refuse(numbers.is_null().to_numpy(), "a number (or set `missing` for this column)")
    filled = np.ascontiguousarray(numbers.fill_null(0.0 if missing is None else missing).to_numpy())
    with np.errstate(over="ignore"):
        place.refuse(~np.isfinite(filled.astype(np.float32)), "a finite number")
    return filled
