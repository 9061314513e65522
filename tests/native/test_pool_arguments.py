"""The pooling kernels refuse arrays that don't fit, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persia_hpc import _native

ROWS = np.ones((3, 2), np.float32)
INDICES = np.array([0, 1, 2], np.uint16)
BAGS = np.array([0, 1, 3], np.uint32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": ROWS.astype(np.float64)}, ValueError, "float32 or float16 or uint16 array .*got float64"),
        ({"rows": ROWS[0]}, ValueError, r"of shape \[U, 2\], got float32 \[2\]"),
        ({"dim": 3}, ValueError, r"of shape \[U, 3\], got float32 \[3, 2\]"),
        ({"indices": INDICES.astype(np.int64)}, ValueError, "uint16 or uint32"),
        ({"indices": np.array([0, 3, 1], np.uint32)}, IndexError, "index 3 in a group of 3 rows"),
        ({"features": [(0, 4, "sum", BAGS)]}, ValueError, "outside the batch's 3"),
        ({"features": [(0, 3, "max", BAGS)]}, ValueError, "sum, mean, sqrtn, sequence or jagged, got max"),
        ({"features": [(0, 3, "sum", None)]}, ValueError, "one id per sample of 2"),
        (
            {"features": [(0, 3, "sum", BAGS[:2])]},
            ValueError,
            r"bags: expected .* of shape \[3\], got uint32 \[2\]",
        ),
        ({"features": [(0, 3, "sum", BAGS[::-1].copy())]}, ValueError, "grow from 0"),
        ({"weights": [np.ones(2, np.float32)]}, ValueError, r"weights: expected .* of shape \[3\]"),
        ({"weights": [np.ones(3)]}, ValueError, "weights: expected .* float32"),
        ({"weights": [None, None]}, ValueError, "weights .* for each feature, or none at all, got 2"),
        (
            {"weights": [np.ones(3, np.float32)], "features": [(0, 3, "mean", BAGS)]},
            ValueError,
            "which need bags, a sum and one for each id",
        ),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "rows": ROWS,
        "indices": INDICES,
        "features": [(0, 3, "sum", BAGS)],
        "dim": 2,
    }
    _native.gather_pool_forward(**arguments, num_samples=2)
    with pytest.raises(error, match=message):
        _native.gather_pool_forward(**{**arguments, **change}, num_samples=2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"pooled_gradient": np.ones((2, 2, 2), np.float32)},
            ValueError,
            r"of shape \[2, 1, 2\], got float32 \[2, 2, 2\]",
        ),
        ({"pooled_gradient": np.ones((2, 1, 2), np.float16)}, ValueError, "expected a C-contiguous float32"),
        ({"sequence_gradients": [None]}, ValueError, "one gradient .* per feature that isn't pooled, got 1"),
        ({"indices": np.array([0, 1, 3], np.uint16)}, IndexError, "index 3 in a group of 3 rows"),
        ({"wire": "fp8"}, ValueError, "expected fp32, fp16, bf16 or scaled_fp16, got fp8"),
    ],
)
def test_bad_gradients_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "pooled_gradient": np.ones((2, 1, 2), np.float32),
        "sequence_gradients": [],
        "indices": INDICES,
    }
    rest = {"features": [(0, 3, "sum", BAGS)], "num_samples": 2, "num_rows": 3, "dim": 2}
    _native.gather_pool_backward(**arguments, **rest)
    with pytest.raises(error, match=message):
        _native.gather_pool_backward(**{**arguments, **change}, **rest)
