"""Compares values with the words of a schema (`positive`, `missing`, `split.values`) by type, not as text.

A word that reads as a number equals each value that is this number, however it is written: `1` equals 1, 1.0
and the text "1.00". The words true and false equal Boolean values and these words in any case. All other
words equal the same text only.
Shapes: N values of one column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import polars as pl

from persia_hpc.preprocess.frames import Place
from persia_hpc.preprocess.kinds import plain

# Not "007": a code with zeros before it is no number.
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_TRUTH = {"true": True, "false": False}


def as_number(word: str) -> Decimal | None:
    """Returns the number that the word is; None for any other word."""
    return Decimal(word) if _NUMBER.fullmatch(word) else None


def as_truth(word: str) -> bool | None:
    """Returns the Boolean that the word is; None for any other word."""
    return _TRUTH.get(word.lower())


def equal(column: pl.Series, word: str, *, numbers_are_truth: bool = False) -> pl.Series:
    """Returns which values of a plain column equal the word.

    numbers_are_truth: 1 equals true too, and 0 equals false
    Shapes: [N] booleans without nulls.
    """
    number, truth = as_number(word), as_truth(word)
    if numbers_are_truth and truth is None and number in (0, 1):
        truth = number == 1
    if numbers_are_truth and number is None and truth is not None:
        number = Decimal(int(truth))
    if column.dtype == pl.Boolean:
        return _none(column) if truth is None else (column == truth).fill_null(False)
    if column.dtype == pl.Date:
        return (column.cast(pl.String) == word).fill_null(False)
    if column.dtype == pl.String:
        found = (column == word).fill_null(False)
        if truth is not None:
            found |= (column.str.to_lowercase() == str(truth).lower()).fill_null(False)
        return found if number is None else found | _equal_texts(column, number)
    if column.dtype.is_float() and word.lower() == "nan":
        return column.is_nan().fill_null(False)
    if column.dtype.is_float() and word.lower() in ("inf", "-inf"):
        return (column == float(word)).fill_null(False)
    if number is None or not column.dtype.is_numeric():
        return _none(column)
    return _equal_numbers(column, number)


def _none(column: pl.Series) -> pl.Series:
    return pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)


def _concerns(dtype: pl.DataType, word: str) -> bool:
    """Says whether a value of a numeric type may equal the word; of all other types it does."""
    if not dtype.is_numeric() or as_number(word) is not None:
        return True
    return dtype.is_float() and word.lower() in ("nan", "inf", "-inf")


def _equal_numbers(column: pl.Series, number: Decimal) -> pl.Series:
    """Returns which values are this number: near it as floats first, then each of these exactly."""
    if column.dtype.is_integer():
        whole = pl.Series([f"{number.to_integral_value():f}"]).cast(column.dtype, strict=False)
        fits = number == number.to_integral_value() and not whole.has_nulls()
        return (column == whole).fill_null(False) if fits else _none(column)
    nearest = float(number)
    if column.dtype == pl.Float32 and abs(nearest) < float(np.finfo(np.float32).max):
        nearest = float(np.float32(nearest))
    near = (column.cast(pl.Float64, strict=False) == nearest).fill_null(False)
    return near & _exactly(column, near, number) if near.any() else near


def _equal_texts(column: pl.Series, number: Decimal) -> pl.Series:
    """Returns which texts are this number; only those that begin like it are read as numbers."""
    first = str(next((digit for digit in number.as_tuple().digits if digit), 0))
    begins = ["-" + first, "-0"] if number < 0 else [first, "0", "+", *(["-0"] if number == 0 else [])]
    found = pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    for begin in begins:
        found |= column.str.starts_with(begin).fill_null(False)
    if not found.any():
        return found
    texts = column.filter(found)
    near = (texts.cast(pl.Float64, strict=False) == float(number)).fill_null(False)
    equal = np.zeros(len(column), bool)
    equal[found.to_numpy()] = (near & _exactly(texts, near, number)).to_numpy()
    return pl.Series(equal)


def _exactly(column: pl.Series, near: pl.Series, number: Decimal) -> pl.Series:
    """Returns which of the values that are near the number, as a mask, equal it."""
    different = column.filter(near).unique()
    exact = [value for value in different.to_list() if _is_number(value, number)]
    if len(exact) == len(different):
        return near
    return column.is_in(pl.Series(exact, dtype=column.dtype).implode()).fill_null(False)


def _is_number(value: object, number: Decimal) -> bool:
    if isinstance(value, str):
        return as_number(value) == number
    if isinstance(value, float) and number != number.to_integral_value():
        return True  # the nearest float to a fraction stands for it; a whole number must be the same one
    return Decimal(value) == number  # type: ignore[arg-type]


class MissingWords:
    """Puts null in place of values that mean "no value", and remembers which words were met."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._plain = [word for word in words if as_number(word) is None and as_truth(word) is None]
        self.unmet = set(words)

    def report(self) -> list[str]:
        """Returns a line to print if any of the words was never met, else none."""
        if not self.unmet:
            return []
        words = ", ".join(repr(word) for word in self._words if word in self.unmet)
        return [f"warning: missing: {words} equals no value in any column that is used"]

    def cleaned(self, column: pl.Series, place: Place) -> pl.Series:
        """Returns a plain column: text stripped, with null for empty text and for the words.

        Raises UserError as `plain` does.
        """
        column = plain(column, place)
        if column.dtype == pl.String:
            column = column.str.strip_chars()
            hits = column.is_in(pl.Series(["", *self._plain], dtype=pl.String).implode()).fill_null(False)
            words = [word for word in self._words if word not in self._plain]
        else:
            words = [word for word in self._words if _concerns(column.dtype, word)]
            if not words:
                return column
            hits = equal(column, words.pop(0))
        for word in words:
            hits |= equal(column, word)
        if not hits.any():
            return column
        if self.unmet:
            met = column.filter(hits)
            self.unmet -= {word for word in self.unmet if equal(met, word).any()}
        return column.set(hits, None)
