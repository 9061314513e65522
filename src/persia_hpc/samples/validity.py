"""The value checks that writer and reader share. Each returns nothing or raises with the first bad row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError


class InvalidRowError(UserError):
    """A value that a dataset can't hold; `row` is its row number, `problem` the text without the place."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row}: {problem}")
        self.row = row
        self.problem = problem


def _first(bad: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))


def check_finite(what: str, names: Sequence[str], array: npt.NDArray[np.float32], first_row: int) -> None:
    """Raise `InvalidRowError` at the first NaN or infinity in float32 [B, columns].

    Rows count from `first_row`, here and below.
    """
    finite = np.isfinite(array)
    if not finite.all():
        row, column = _first(~finite)
        raise InvalidRowError(
            first_row + row,
            f"got {array[row, column]} in {what} {names[column]!r}, expected a finite number; "
            "replace missing values before writing the dataset",
        )


def is_binary(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which values of float32 [B, L] are 0 or 1."""
    binary: npt.NDArray[np.bool_] = (labels == 0) | (labels == 1)
    return binary


def check_binary(names: Sequence[str], labels: npt.NDArray[np.float32], first_row: int) -> None:
    """Raise `InvalidRowError` at the first label of float32 [B, L] that isn't 0 or 1."""
    good = is_binary(labels)
    if not good.all():
        row, column = _first(~good)
        raise InvalidRowError(
            first_row + row,
            f"got {labels[row, column]} in label {names[column]!r}, expected 0 or 1; "
            "if it is meant, turn the check for binary labels off and use a loss for real values",
        )


def check_weight(weight: npt.NDArray[np.float32], first_row: int) -> None:
    """Raise `InvalidRowError` at the first weight of float32 [B] that is negative, NaN or infinite."""
    good = np.isfinite(weight) & (weight >= 0)
    if not good.all():
        (row,) = _first(~good)
        raise InvalidRowError(
            first_row + row, f"got weight {weight[row]}, expected a finite number, 0 or more"
        )


def check_ids(name: str, ids: npt.NDArray[np.uint64], limit: int, row_of_value: Callable[[int], int]) -> None:
    """Raise `InvalidRowError` at the first id above `limit`; `row_of_value(i)` gives the row of value i."""
    if len(ids) and int(ids.max()) > limit:
        i = int((ids > np.uint64(limit)).argmax())
        raise InvalidRowError(
            row_of_value(i),
            f"got id {ids[i]} in feature {name!r}, expected at most {limit}; choose a wider id dtype",
        )
