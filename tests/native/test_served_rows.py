"""Formats of served rows: what comes back is what was stored, as near as the format allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from persia_hpc._native import ServedTable, encode_served

floats = st.floats(-(2.0**99), 2.0**99, width=32)
rows_of_floats = st.tuples(st.integers(1, 5), st.integers(1, 33)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=floats)
)


def round_trip(rows: np.ndarray, name: str) -> np.ndarray:
    served = ServedTable(name, rows.shape[1])
    keys = np.arange(len(rows), dtype=np.uint64)
    served.add_changes(keys, encode_served(rows, name), keys[:0])
    out = np.empty_like(rows)
    served.lookup(keys, out)
    return out


@settings(max_examples=200, deadline=None)
@given(rows_of_floats)
def test_int8_is_half_a_step_off_at_most(rows: np.ndarray) -> None:
    encoded = encode_served(rows, "int8")
    assert encoded.shape == (len(rows), rows.shape[1] + 2)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    step = largest.astype(np.float64) / 127 * (1 + 2**-7) + 1e-38  # the scale is rounded up to a bf16
    assert (np.abs(round_trip(rows, "int8").astype(np.float64) - rows) <= step / 2 * (1 + 1e-6)).all()


def int8_of(row: np.ndarray) -> bytes:
    """One row, element by element."""
    magnitudes = np.minimum(np.abs(row), np.finfo(np.float32).max)
    largest = np.float32(max([*magnitudes[~np.isnan(row)].tolist(), 0.0]))
    high = (int((largest / np.float32(127)).view(np.uint32)) + 0xFFFF) >> 16
    scale = np.array([high << 16], np.uint32).view(np.float32)[0]
    with np.errstate(invalid="ignore"):
        steps = np.rint(row / (scale if scale > 0 else np.float32(1)))
    steps = np.clip(np.where(np.isnan(steps), -127, steps), -127, 127)
    return np.uint16(high).tobytes() + steps.astype(np.int8).tobytes()


anything = st.floats(width=32) | st.sampled_from([0.5, 1.5, -2.5, 127.0, -127.0])  # halves go to even


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.just(2), st.sampled_from([*range(1, 20), 32, 40, 64, 128, 131])).flatmap(
        lambda shape: arrays(np.float32, shape, elements=anything)
    )
)
def test_int8_is_what_it_is_element_by_element(rows: np.ndarray) -> None:
    """Many elements at a time, also infinity, NaN and ties."""
    assert [row.tobytes() for row in encode_served(rows, "int8")] == [int8_of(row) for row in rows]


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_floats_are_rounded_to_the_nearest(name: str) -> None:
    rows = np.random.default_rng(3).normal(size=(50, 16)).astype(np.float32)
    got = round_trip(rows, name)
    if name == "fp32":
        np.testing.assert_array_equal(got, rows)
    elif name == "fp16":
        np.testing.assert_array_equal(got, rows.astype(np.float16).astype(np.float32))
    else:
        assert (got.view(np.uint32) & 0xFFFF == 0).all()
        np.testing.assert_allclose(got, rows, rtol=2**-8)


def test_int8_stays_finite_up_to_the_largest_float() -> None:
    """127 steps of a scale that was rounded up may be more than that."""
    largest = float(np.finfo(np.float32).max)
    tops = np.linspace(3.3e38, largest, 200, dtype=np.float32)
    rows = np.stack([tops, -tops, tops / 3, np.zeros_like(tops)], axis=1)
    off = np.abs(round_trip(rows, "int8").astype(np.float64) - rows)
    assert (off <= largest / 127 * (1 + 2**-7) / 2).all()
    got = round_trip(np.array([[np.inf, -np.inf, 1e38]], np.float32), "int8")
    assert (np.abs(got[0] / largest - [1, -1, 1e38 / largest]) < 0.01).all()


def test_a_row_of_zeros_stays_one_and_nan_is_none_of_int8() -> None:
    rows = np.array([[0, 0, 0], [np.nan, 1, -1]], np.float32)
    got = round_trip(rows, "int8")
    assert (got[0] == 0).all()
    assert np.isfinite(got).all()


def test_fp16_cuts_off_at_its_largest_number() -> None:
    rows = np.array([[1e6, -65520, 65504, np.nan] * 4], np.float32)
    got = round_trip(rows, "fp16").reshape(4, 4)
    assert (got[:, :3] == [65504, -65504, 65504]).all()
    assert np.isnan(got[:, 3]).all()


def test_int8_takes_less_than_a_third() -> None:
    assert ServedTable("int8", 16).row_bytes <= 0.3 * ServedTable("fp32", 16).row_bytes
