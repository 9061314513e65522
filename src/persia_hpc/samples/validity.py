"""Checks values for writer and reader; each check returns nothing or raises with the first bad row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError


class InvalidRowError(UserError):
    """Is raised for a value that a dataset can't hold; has its row number and the problem in words."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row}: {problem}")
        self.row = row
        self.problem = problem


def _first(bad: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))


def check_finite(what: str, names: Sequence[str], array: npt.NDArray[np.float32], first_row: int) -> None:
    """Checks that dense features are finite; rows count from `first_row`, in all checks here.

    Shapes: `array` float32 [B, columns], with a name for each column.

    Raises InvalidRowError at the first NaN or infinity.
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
    """Returns which labels are 0, 1 or missing (NaN).

    Shapes: float32 [B, L] in, bool [B, L] out.
    """
    binary: npt.NDArray[np.bool_] = (labels == 0) | (labels == 1) | np.isnan(labels)
    return binary


def check_labels(
    names: Sequence[str], labels: npt.NDArray[np.float32], first_row: int, *, binary: bool
) -> None:
    """Checks that all labels are finite or missing (NaN), and with `binary` that they are 0, 1 or missing.

    Shapes: `labels` float32 [B, L], with a name for each column.

    Raises InvalidRowError at the first label that isn't.
    """
    good = is_binary(labels) if binary else ~np.isinf(labels)
    if not good.all():
        row, column = _first(~good)
        got = f"got {labels[row, column]} in label {names[column]!r}, "
        if binary and np.isfinite(labels[row, column]):
            problem = (
                "expected 0 or 1, or NaN where it is missing; "
                "if it is meant, turn the check for binary labels off and use a loss for real values"
            )
        else:
            problem = "expected a finite number, or NaN where it is missing"
        raise InvalidRowError(first_row + row, got + problem)


def check_weight(weight: npt.NDArray[np.float32], first_row: int) -> None:
    """Checks that all weights are finite and not negative.

    Shapes: `weight` float32 [B].

    Raises InvalidRowError at the first weight that isn't.
    """
    good = np.isfinite(weight) & (weight >= 0)
    if not good.all():
        (row,) = _first(~good)
        raise InvalidRowError(
            first_row + row, f"got weight {weight[row]}, expected a finite number, 0 or more"
        )


def check_id_weights(name: str, weights: npt.NDArray[np.float32], row_of_value: Callable[[int], int]) -> None:
    """Checks that all weights of ids are finite; `row_of_value(i)` gives the row of weight i.

    Shapes: `weights` float32 [N].

    Raises InvalidRowError at the first weight that isn't.
    """
    finite = np.isfinite(weights)
    if not finite.all():
        (i,) = _first(~finite)
        raise InvalidRowError(
            row_of_value(i), f"got weight {weights[i]} of an id of {name!r}, expected a finite number"
        )


def check_ids(name: str, ids: npt.NDArray[np.uint64], limit: int, row_of_value: Callable[[int], int]) -> None:
    """Checks that no id exceeds `limit`; `row_of_value(i)` gives the row of value i.

    Shapes: `ids` uint64 [N].

    Raises InvalidRowError at the first id that does.
    """
    if len(ids) and int(ids.max()) > limit:
        i = int((ids > np.uint64(limit)).argmax())
        raise InvalidRowError(
            row_of_value(i),
            f"got id {ids[i]} in feature {name!r}, expected at most {limit}; choose a wider id dtype",
        )
