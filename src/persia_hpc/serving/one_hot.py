"""Answers requests whose features all have one id by a single look-up: what a model gets of each is its row.

Shapes: F features, B samples, T tables, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc._native import lookup_served, mix
from persia_hpc.arrays import Array

from .side import Served, Side

_IDS = {int, np.int64}


@dataclass(frozen=True)
class OneHot:
    """Says where the rows of each feature lie among those of all, in the order of their tables.

    names: of the features in that order. counts: uint32 [T], features of each table. groups: of each dim
    group its features and D. places: of each feature its dim group, and its place among the group's features.
    """

    names: tuple[str, ...]
    counts: npt.NDArray[np.uint32]
    group_of_table: Sequence[int]
    groups: tuple[tuple[int, int], ...]
    places: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, served: Served) -> OneHot | None:
        """Returns it for a run's tables; None if a feature has other than one id, or its ids are no keys."""
        layout, schema = served.layout, served.schema
        plain = {f.name for f in layout.features if not f.multi and f.pooling not in ("sequence", "jagged")}
        plain &= {f.name for f in schema.features if not f.multi and not f.weighted}
        hashed = any(table.config.hash is not None for table in layout.tables)
        named = {f.name for f in layout.features} | set(schema.feature_names)
        if hashed or named != plain or served.config.data.transform is not None:
            return None
        features = sorted(layout.features, key=lambda feature: feature.table)
        counts = np.bincount([f.table for f in features], minlength=len(layout.tables)).astype(np.uint32)
        sizes = [0] * len(layout.dim_groups)
        places = {}
        for feature in features:
            group = layout.tables[feature.table].dim_group
            places[feature.name] = group, sizes[group]
            sizes[group] += 1
        groups = tuple(zip(sizes, layout.dim_groups, strict=True))
        names = tuple(feature.name for feature in features)
        return cls(
            names,
            counts,
            layout.dim_group_of_table,
            groups,
            {feature.name: places[feature.name] for feature in layout.features},
        )

    def pooled(self, side: Side, features: Mapping[str, Any]) -> dict[str, Array] | None:
        """Returns the rows of features by name; None unless they have integers of one form, and all of them.

        Shapes: [D] for one request, [B, D] for a batch, float32.
        """
        ids = self._ids(features)
        if ids is None or not ids.size:
            return None
        b = 1 if ids.ndim == 1 else ids.shape[1]
        out = [np.empty((size * b, dim), np.float32) for size, dim in self.groups]
        counts = self.counts * np.uint32(b)
        lookup_served(side.tables, mix(ids.reshape(-1)), counts, self.group_of_table, out)
        if ids.ndim == 1:
            return {name: out[group][at] for name, (group, at) in self.places.items()}
        return {name: out[group][at * b : at * b + b] for name, (group, at) in self.places.items()}

    def _ids(self, features: Mapping[str, Any]) -> npt.NDArray[np.uint64] | None:
        """Returns ids [F] of one request or [F, B] of a batch."""
        if not isinstance(features, Mapping) or len(features) != len(self.names):
            return None
        try:
            values = [features[name] for name in self.names]
            if set(map(type, values)) <= _IDS:
                return np.array(values, np.int64).view(np.uint64)
            columns = [column for column in map(_column, values) if column is not None]
        except (KeyError, OverflowError):
            return None
        length = len(columns[0]) if columns else 0
        if len(columns) < len(values) or any(len(column) != length for column in columns):
            return None
        ids = np.empty((len(columns), length), np.uint64)
        for to, column in zip(ids, columns, strict=True):
            to[:] = column
        return ids


def _column(values: Any) -> Array | None:
    if isinstance(values, np.ndarray):
        return values if values.ndim == 1 and values.dtype.kind in "iu" else None
    if isinstance(values, list) and set(map(type, values)) <= _IDS:
        return np.array(values, np.int64)
    return None
