"""Defines the number formats in which rows and gradients travel.

U rows, D dim. An array's format follows from its dtype and width: float32 [U, D], float16 [U, D], uint16 [U,
D] (bf16), uint16 [U, D + 2] (scaled_fp16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError


@dataclass(frozen=True)
class Wire:
    """Describes the array that holds rows in a format: `dtype` [U, D + `extra`]."""

    name: str
    dtype: np.dtype[Any]
    extra: int = 0  # words behind a row's elements

    def shape(self, num_rows: int, dim: int) -> tuple[int, int]:
        """Returns the shape of the array that holds `num_rows` rows."""
        return num_rows, dim + self.extra

    def row_bytes(self, dim: int) -> int:
        """Returns the bytes of one row."""
        return (dim + self.extra) * self.dtype.itemsize


WIRES: dict[str, Wire] = {
    wire.name: wire
    for wire in (
        Wire("fp32", np.dtype(np.float32)),
        Wire("fp16", np.dtype(np.float16)),
        Wire("bf16", np.dtype(np.uint16)),  # NumPy has no type for it
        Wire("scaled_fp16", np.dtype(np.uint16), 2),  # the row's largest magnitude, a float32, as two words
    )
}


def wire_of(rows: npt.NDArray[Any], dim: int) -> Wire:
    """Returns the format of an array of rows of `dim`.

    Raises UserError, which describes the array, if it has none of the formats.
    """
    for wire in WIRES.values():
        if rows.dtype == wire.dtype and rows.ndim == 2 and rows.shape[1] == dim + wire.extra:
            return wire
    raise UserError(
        f"rows of dim {dim} can travel as float32 or float16 [U, {dim}], or as uint16 [U, {dim}] or "
        f"[U, {dim + 2}]; got {rows.dtype} {list(rows.shape)}"
    )
