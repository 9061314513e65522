"""What one trainer's batch is made of: ids, unique rows, and bytes on each hop.

Shape letters: F features, T tables, both in the layout's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from persia_hpc.config import Config
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import ROW_OVERHEAD_BYTES, Layout, row_bytes

STORED = {"fp32": 4, "fp16": 2, "bf16": 2}
FEW_ROWS = 1 << 16  # with so many or less an id's index has two bytes


@dataclass(frozen=True)
class Counts:
    """Of a batch: rows that its ids stand for (by feature, hashing included), unique ones (by table), and
    ids as stored, before `max_length` cuts them.
    """

    ids: tuple[float, ...]
    rows: tuple[float, ...]
    stored: float


Counting = Callable[[int], Counts]  # by the samples of a batch


@dataclass(frozen=True)
class BatchWork:
    """One trainer's batch; averages, so not whole numbers."""

    samples: float
    num_features: int
    num_tables: int
    values: float  # read: ids, dense features, labels
    ids: float
    rows: float
    stored_bytes: float  # of the rows' weights, as tables keep them
    updated_bytes: float  # of weights and optimizer state
    pooled_bytes: float  # vectors of all ids, float32
    key_bytes: float  # worker to servers
    row_bytes: float  # servers to worker
    feed_bytes: float  # worker to trainer
    gradient_bytes: float  # trainer to worker, and worker to servers


def batch_work(
    config: Config, layout: Layout, schema: DatasetSchema, samples: float, counts: Counts
) -> BatchWork:
    """The work of a batch of `samples` with these ids and rows; a pure function."""
    tables, ids, rows = layout.tables, sum(counts.ids), sum(counts.rows)

    def travelling(name: str) -> float:
        wire = WIRES[name]
        return sum(
            n * math.prod(wire.shape(1, t.dim)) * wire.dtype.itemsize
            for n, t in zip(counts.rows, tables, strict=True)
        )

    row_wire = travelling(config.wire.rows)
    groups = [layout.tables_of_dim_group(g) for g in range(len(layout.dim_groups))]
    index = 2 if max(sum(counts.rows[t] for t in group) for group in groups) <= FEW_ROWS else 4
    width = 4 * (len(schema.dense_names) + len(schema.label_names) + schema.has_weight + 2 * schema.has_group)
    offsets = 4 * sum(feature.multi for feature in layout.features)
    return BatchWork(
        samples=samples,
        num_features=len(layout.features),
        num_tables=len(tables),
        values=counts.stored + samples * (len(schema.dense_names) + len(schema.label_names)),
        ids=ids,
        rows=rows,
        stored_bytes=sum(
            n * t.dim * STORED[t.config.storage] for n, t in zip(counts.rows, tables, strict=True)
        ),
        updated_bytes=sum(
            n * (row_bytes(t.config) - ROW_OVERHEAD_BYTES) for n, t in zip(counts.rows, tables, strict=True)
        ),
        pooled_bytes=sum(
            4 * n * tables[f.table].dim for n, f in zip(counts.ids, layout.features, strict=True)
        ),
        key_bytes=8 * rows,
        row_bytes=row_wire,
        feed_bytes=row_wire + (index + 4) * ids + 4 * rows + samples * (width + offsets),
        gradient_bytes=travelling(config.wire.gradients),
    )


def assumed_counts(
    layout: Layout, ids_per_sample: tuple[float, ...], stored_per_sample: float, unique_share: float
) -> Counting:
    """Counts when a given share of a batch's ids are different ones."""

    def counts(samples: int) -> Counts:
        ids = tuple(samples * n for n in ids_per_sample)
        rows = np.zeros(len(layout.tables))
        for n, feature in zip(ids, layout.features, strict=True):
            rows[feature.table] += n * unique_share
        return Counts(ids, tuple(rows.tolist()), samples * stored_per_sample)

    return counts
