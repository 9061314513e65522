"""Words of a schema equal values by type: against a reference in plain Python, by type and spelling."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc.preprocess.frames import Frame, Place
from persia_hpc.preprocess.rules import MissingWords, equal

numbers = st.one_of(
    st.sampled_from([0, 1, -1, 7, 2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)]), st.integers(-99, 99)
)
columns = st.one_of(
    st.tuples(st.just(pl.Int64), st.lists(numbers.filter(lambda n: -(2**63) <= n < 2**63))),
    st.tuples(st.just(pl.UInt64), st.lists(numbers.filter(lambda n: 0 <= n < 2**64))),
    st.tuples(
        st.just(pl.Float64), st.lists(st.one_of(numbers, st.sampled_from([0.5, -0.0, math.inf])).map(float))
    ),
    st.tuples(st.just(pl.Decimal(20, 2)), st.lists(st.integers(-99, 99).map(lambda n: Decimal(n) / 4))),
    st.tuples(st.just(pl.Boolean), st.lists(st.booleans())),
    st.tuples(
        st.just(pl.String),
        st.lists(
            st.sampled_from(
                ["a", "A", "1", "1.0", "01", "+1", "1e0", "0.1", "True", "false", "-1.50", "9" * 30]
            )
        ),
    ),
)
words = st.one_of(
    numbers.map(str),
    st.sampled_from(
        ["a", "1.0", "01", "true", "False", "0.5", "-1.5", "0.1", "inf", "9" * 30, "1e400", "1e2"]
    ),
)


def number(text: str) -> Fraction | None:
    """What the text is as a number, if it is written like one, without zeros before it."""
    digits = text.lstrip("+-").split("e")[0].split(".")[0]
    if not digits.isdecimal() or (len(digits) > 1 and digits.startswith("0")):
        return None
    return Fraction(text)


def reference(value: Any, word: str, truth_is_number: bool) -> bool:
    truth, wanted = {"true": True, "false": False}.get(word.lower()), number(word)
    if isinstance(value, str):
        if value == word or (truth is not None and value.lower() == word.lower()):
            return True
        if truth_is_number and value.lower() in ("true", "false"):
            value = "1" if value.lower() == "true" else "0"
        value = number(value)
    elif isinstance(value, bool):
        if truth is not None:
            return value == truth
        value = Fraction(int(value)) if truth_is_number else None
    elif value == math.inf:
        return word == "inf"
    if truth_is_number and truth is not None:
        wanted = Fraction(int(truth))
    return value is not None and wanted is not None and Fraction(value) == wanted


@settings(max_examples=300, deadline=None)
@given(columns, words, st.booleans())
def test_words_equal_values_as_in_plain_python(
    column: tuple[Any, list[Any]], word: str, truth_is_number: bool
) -> None:
    dtype, values = column
    found = equal(pl.Series(values, dtype=dtype), word, numbers_are_truth=truth_is_number)
    assert found.to_list() == [reference(value, word, truth_is_number) for value in values]


@settings(max_examples=100, deadline=None)
@given(columns, st.lists(words, max_size=3, unique=True))
def test_missing_words_become_null_and_are_remembered(column: tuple[Any, list[Any]], some: list[str]) -> None:
    dtype, values = column
    frame = Frame(pl.DataFrame({"c": pl.Series(values, dtype=dtype)}), "file")  # type: ignore[arg-type]
    missing = MissingWords(some)
    cleaned = missing.cleaned(frame.frame["c"], Place(frame, "c"))
    gone = [any(reference(value, word, False) for word in some) for value in values]
    assert cleaned.is_null().to_list() == gone
    assert missing.unmet == {
        word for word in some if not any(reference(value, word, False) for value in values)
    }


def test_a_fraction_equals_the_nearest_float() -> None:
    for dtype in (pl.Float32, pl.Float64):
        assert equal(pl.Series([0.1, 0.2], dtype=dtype), "0.1").to_list() == [True, False]
    assert not equal(pl.Series([np.float32(2**24)]), str(2**24 + 1)).any()
