"""Says which types of columns can be what in a dataset, and makes few plain types of many.

The plain types are those of integers, floats and decimals, Boolean, String, Date and Datetime.
Shapes: N rows, M values of all rows together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Place, short

Lengths = npt.NDArray[np.int64]

ROLES = ("label", "id", "dense", "weight", "group", "time")
# Plain kind -> the roles that a column of it can have. A list can be ids, if its elements can.
USES: Mapping[str, tuple[str, ...]] = {
    "number": ROLES,
    "text": ROLES,
    "boolean": ("label", "id", "dense", "weight", "group"),
    "date": ("id", "group", "time"),
    "datetime": ("time",),
}
ADVICE = {
    "label": "numbers, Boolean or text",
    "id": "integers, whole numbers, Boolean, text or dates, or lists of them",
    "dense": "numbers, Boolean or text that holds numbers",
    "weight": "numbers, Boolean or text that holds numbers",
    "group": "integers, whole numbers, Boolean, text or dates",
    "time": "whole seconds as numbers or text, dates or datetimes",
}
_FLOAT16: pl.DataType | type[pl.DataType] | None = getattr(pl, "Float16", None)  # newer than polars 1.30


def kind_of(dtype: pl.DataType) -> str:
    """Returns the kind of a column's type, a key of `USES`; "" for a type that is of no use."""
    if dtype.is_numeric():
        return "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Binary, pl.Null):
        return "text"
    return {pl.Boolean: "boolean", pl.Date: "date", pl.Datetime: "datetime"}.get(dtype.base_type(), "")


def is_list(dtype: pl.DataType) -> bool:
    """Returns whether each row of a column of this type holds any number of values."""
    return isinstance(dtype, (pl.List, pl.Array))


def check_type(dtype: pl.DataType, role: str, place: Place) -> None:
    """Checks that a column of this type can be used in the role.

    Raises UserError that names the type, for any other.
    """
    if role not in USES.get(kind_of(dtype), ()):
        whole = place.source.frame.schema[place.column]
        raise UserError(
            f"{place.source.path}: {place.column}: got {short(str(whole))}, expected {ADVICE[role]}; "
            f"convert the column first"
        )


def plain(column: pl.Series, place: Place) -> pl.Series:
    """Returns the column with text in place of Categorical, Enum, Binary and Null.

    Raises UserError for bytes that aren't UTF-8.
    """
    if column.dtype in (pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    if column.dtype == pl.Binary:
        return _decoded(column, place)
    return column.cast(pl.Float32) if _FLOAT16 is not None and column.dtype == _FLOAT16 else column


def _decoded(column: pl.Series, place: Place) -> pl.Series:
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:  # it doesn't say where
        place.refuse(np.array([not _is_utf8(value) for value in column.to_list()], bool), "UTF-8 text")
        raise


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def flatten(column: pl.Series) -> tuple[pl.Series, Lengths]:
    """Returns the values of a column of lists in one series, and how many each row has.

    Null and empty lists have none.
    Shapes: lists [N] become values [M] and lengths [N].
    """
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    values = column.filter(pl.Series(lengths > 0)).explode()
    return values, lengths


def kept(values: pl.Series, lengths: Lengths) -> tuple[pl.Series, Lengths]:
    """Returns the values that aren't null, and how many each row has of them.

    Shapes: values [M] and lengths [N] become fewer values and lengths [N].
    """
    if not values.null_count():
        return values, lengths
    keep = values.is_not_null().to_numpy()
    before = np.concatenate([[0], np.cumsum(keep)])
    ends = np.cumsum(lengths)
    return values.drop_nulls(), (before[ends] - before[ends - lengths]).astype(np.int64)
