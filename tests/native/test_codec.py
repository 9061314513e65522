"""Wire formats of rows against NumPy, and how far what arrives is from what was sent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from persia_hpc._native import decode_rows, encode_rows
from persia_hpc.config.types import WIRE_FORMATS
from persia_hpc.protocol.wire import WIRES, wire_of

Array = npt.NDArray[np.float32]
KAPPA = np.float32(32768)
any_rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
    elements=st.floats(width=32),
)


def bf16(rows: Array) -> npt.NDArray[np.uint16]:
    """To nearest, ties to even, by the distance to both neighbours."""
    low = (rows.view(np.uint32) >> 16).astype(np.uint16)
    bits = rows.view(np.uint32) & 0xFFFF
    up = (bits > 0x8000) | ((bits == 0x8000) & (low % 2 == 1))
    return np.where(np.isnan(rows), low | 0x40, low + up).astype(np.uint16)


def scaled_fp16(rows: Array) -> npt.NDArray[np.uint16]:
    norm = np.abs(rows).max(axis=1, keepdims=True)
    up = np.where(norm < 2.0**-64, np.float32(2.0**64), np.float32(1))
    factor = np.where(norm > 0, KAPPA / (norm * up), np.float32(0))
    return np.concatenate(
        [(rows * up * factor).astype(np.float16).view(np.uint16), norm.view(np.uint16)], axis=1
    )


def both_equal(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> bool:
    """Equal bits, but for those of NaNs."""
    return bool(np.array_equal(one, other, equal_nan=True)) and one.dtype == other.dtype


@settings(max_examples=200, deadline=None)
@given(any_rows)
def test_formats_equal_numpy(rows: Array) -> None:
    dim = rows.shape[1]
    with np.errstate(all="ignore"):
        assert both_equal(encode_rows(rows, "fp32"), rows)
        assert both_equal(encode_rows(rows, "fp16"), rows.astype(np.float16))
        assert both_equal(
            decode_rows(rows.astype(np.float16), dim), rows.astype(np.float16).astype(np.float32)
        )
        words = encode_rows(rows, "bf16")
        finite = ~np.isnan(rows)
        assert np.array_equal(words[finite], bf16(rows)[finite])
        assert both_equal(decode_rows(words, dim), (words.astype(np.uint32) << 16).view(np.float32))
        words = encode_rows(rows, "scaled_fp16")
        good = np.isfinite(rows).all(axis=1)
        assert np.array_equal(words[good], scaled_fp16(rows[good]))
        halves, norm = words[good, :dim].view(np.float16), words[good, dim:].copy().view(np.float32)
        expected = halves.astype(np.float32) / KAPPA * norm
        assert both_equal(decode_rows(np.ascontiguousarray(words[good]), dim), expected)


@settings(max_examples=200, deadline=None)
@given(any_rows)
def test_what_is_not_finite_stays_so_and_nothing_else_becomes_it(rows: Array) -> None:
    for wire in WIRES:
        back = decode_rows(encode_rows(rows, wire), rows.shape[1])
        bad = ~np.isfinite(rows).all(axis=1)
        assert not np.isfinite(back[bad]).all(axis=1).any()
        assert np.array_equal(back[(rows == 0).all(axis=1)], rows[(rows == 0).all(axis=1)])
        if wire in ("fp32", "scaled_fp16"):  # the others overflow
            assert np.isfinite(back[~bad]).all()


# Of normal rows of 64: largest error over the row's largest magnitude, and root of the mean square of the
# error over that of the rows. docs/configuration.md shows them.
ERRORS = {  # wire: (max at 1, rms at 1, max at 1e-7, rms at 1e-7)
    "fp32": (0, 0, 0, 0),
    "fp16": (2.0**-11, 3e-4, 0.3, 0.2),
    "bf16": (2.0**-8, 2e-3, 2.0**-8, 2e-3),
    "scaled_fp16": (2.0**-12 * 1.001, 3e-4, 2.0**-12 * 1.001, 3e-4),
}


@pytest.mark.parametrize("wire", WIRES)
def test_the_error_of_each_format(wire: str) -> None:
    rows = np.random.default_rng(1).standard_normal((4000, 64), np.float32)
    found = []
    for size in (1, 1e-7):
        sent = rows * np.float32(size)
        error = (decode_rows(encode_rows(sent, wire), 64) - sent).astype(np.float64)
        sent = sent.astype(np.float64)
        found.append((np.abs(error) / np.abs(sent).max(axis=1, keepdims=True)).max())
        found.append(np.sqrt((error**2).mean() / (sent**2).mean()))
    for value, bound in zip(found, ERRORS[wire], strict=True):
        assert bound / 3 <= value <= bound


def test_the_configuration_knows_all_formats() -> None:
    assert tuple(WIRES) == WIRE_FORMATS


def test_arrays_that_are_no_rows() -> None:
    with pytest.raises(ValueError, match="expected fp32, fp16, bf16 or scaled_fp16, got fp8"):
        encode_rows(np.ones((1, 2), np.float32), "fp8")
    with pytest.raises(ValueError, match=r"float32 .*shape \[U, D\], got float64 \[1, 2\]"):
        encode_rows(np.ones((1, 2)), "fp16")
    with pytest.raises(ValueError, match=r"shape \[U, 2\], got uint16 \[1, 3\]"):
        decode_rows(np.ones((1, 3), np.uint16), 2)
    assert wire_of(np.ones((1, 4), np.uint16), 2) is WIRES["scaled_fp16"]
