"""Reads the root attributes of a dataset file; anybody can have written them."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError

from . import names as layout


def check_counts(path: str, file: h5py.File) -> None:
    """Checks that the attributes that count something, where they are there, are whole numbers.

    Raises UserError, which names file and attribute, if not.
    """
    for name in (layout.SCHEMA_VERSION_ATTRIBUTE, layout.NUM_SAMPLES):
        value = file.attrs.get(name)
        if value is not None and not is_count(value):
            raise UserError(
                f"{path}: attribute {name}: got {_shown(value)}, expected a whole number; prepare the file "
                "again"
            )


def is_count(value: Any) -> bool:
    """Says whether an attribute's value is a whole number, 0 or more."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        return False
    number = array.item()
    return math.isfinite(number) and number == int(number) and number >= 0


def text_of(value: Any) -> str:
    """Returns a string attribute as text: h5py gives bytes for strings of fixed length, which files hold now.

    Raises ValueError for bytes that aren't UTF-8.
    """
    return value.decode() if isinstance(value, bytes) else str(value)


def texts_of(value: Any) -> list[str]:
    """Returns an attribute that lists strings, of fixed or of any length, or holds a single one.

    Raises ValueError for bytes that aren't UTF-8.
    """
    return [text_of(entry) for entry in np.atleast_1d(value)]


def _shown(value: Any) -> str:
    text = " ".join(ascii(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_true(file: h5py.File, name: str, size: int = 1) -> bool:
    """Says whether an attribute is True, `size` times if it is a list; anything else vouches for nothing."""
    array = np.asarray(file.attrs.get(name, False))
    return array.dtype.kind in "biu" and array.size == size and bool((array == 1).all())


def known_labels(file: h5py.File, rows: int, size: int) -> npt.NDArray[np.float64]:
    """Returns in how many rows each label is known, its least value there and its most; NaN if unsaid.

    Shapes: float64 [size, 3].
    """
    found = np.asarray(file.attrs.get(layout.LABEL_KNOWN, np.nan))
    if found.shape == (size, 3) and found.dtype.kind == "f":
        known, least, most = found.T
        sound = (known > 0) & (known <= rows) & (-np.inf < least) & (least <= most) & (most < np.inf)
        if (sound | (known == 0)).all():
            return found.astype(np.float64)
    stated = bounds(file, layout.LABEL_MIN, layout.LABEL_MAX, size).reshape(2, size)
    return np.column_stack([np.where(np.isnan(stated[0]), np.nan, rows), *stated])


def bounds(file: h5py.File, low: str, high: str, size: int) -> npt.NDArray[np.float64]:
    """Returns both attributes as one array, all NaN unless they are there as expected and finite.

    Shapes: float64 [2 * size].
    """
    found = [np.asarray(file.attrs.get(name, np.nan)).reshape(-1) for name in (low, high)]
    if any(a.dtype.kind not in "iuf" or len(a) != size or not np.isfinite(a).all() for a in found):
        return np.full(2 * size, np.nan)
    return np.concatenate(found).astype(np.float64)
