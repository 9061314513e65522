"""Says what of a batch may be why its loss or gradients aren't finite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from persia_hpc import _native
from persia_hpc.arrays import Array
from persia_hpc.protocol.row_batch import RowBatch

from .batch import Inputs

NAMED = 4  # so many columns are named


def suspects(row_batch: RowBatch, inputs: Inputs) -> str:
    """Returns the columns of a batch with the most values that aren't finite, then those with the largest.

    They are dense columns, labels, the weight and the rows of features. The batch must not be released yet.
    """
    found = [_Range(name, values) for name, values in _columns(row_batch, inputs) if values.size]
    found.sort(key=lambda r: (-r.bad, -r.largest))
    return "; ".join(str(r) for r in found[:NAMED])


class _Range:
    """Holds the range of a column's values."""

    def __init__(self, name: str, values: Array) -> None:
        finite = values[np.isfinite(values)]
        self.name = name
        self.size = values.size
        self.bad = values.size - finite.size
        self.low, self.high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        self.largest = max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        bad = f"NaN or infinite in {self.bad} of {self.size} values" if self.bad else ""
        rest = f"{self.low:.4g} to {self.high:.4g}" if self.bad < self.size else ""
        return f"{self.name} {', else '.join(part for part in (bad, rest) if part)}"


def _columns(row_batch: RowBatch, inputs: Inputs) -> Iterator[tuple[str, Array]]:
    """Yields (name, values) of what a model gets of a batch."""
    for number, column in enumerate(np.asarray(row_batch.dense).T):
        name = inputs.dense_names[number] if inputs.dense_names else number
        yield f"dense column {name}", column
    for name, column in zip(inputs.labels, np.asarray(row_batch.labels).T, strict=True):
        yield f"label {name}", column
    if row_batch.weight is not None:
        yield "weight", np.asarray(row_batch.weight)
    if row_batch.places is not None:  # only a part of the rows has travelled
        return
    for number, feature in enumerate(inputs.features):
        ids = slice(int(row_batch.feature_offsets[number]), int(row_batch.feature_offsets[number + 1]))
        indices = np.unique(row_batch.indices[ids])
        rows = np.ascontiguousarray(row_batch.rows[feature.dim_group][indices])
        yield f"embeddings of {feature.name}", _native.decode_rows(rows, feature.dim)
