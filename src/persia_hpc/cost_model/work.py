"""Counts what one trainer's batch is made of: ids, unique rows, and bytes on each hop.

Shape letters: F features, T tables, both in the layout's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from persia_hpc.config import Config
from persia_hpc.protocol.row_batch import fixed_bytes
from persia_hpc.protocol.wire import WIRES
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout, row_bytes

FEW_ROWS = 1 << 16  # a dim group with at most this many rows in a batch has indices of two bytes


@dataclass(frozen=True)
class Counts:
    """Holds what was counted in batches; means, so not whole numbers.

    Shapes:
    ids [F]: rows that the ids of a feature stand for, hashing included. rows [T]: unique ones of a table.
    stored: ids as the data have them, before `max_length` cuts them.
    """

    ids: tuple[float, ...]
    rows: tuple[float, ...]
    stored: float


Counting = Callable[[int], Counts]  # called with the number of samples of a batch


@dataclass(frozen=True)
class BatchWork:
    """Describes one trainer's batch; means, so not whole numbers."""

    samples: float
    num_features: int
    num_tables: int
    values: float  # read: ids, dense features, labels
    ids: float
    rows: float
    table_rows: tuple[float, ...]  # of each table
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
    """Returns the work of a batch of `samples` with these ids and rows; a pure function."""
    tables, ids, rows = layout.tables, sum(counts.ids), sum(counts.rows)

    def travelling(name: str) -> float:
        return sum(n * WIRES[name].row_bytes(t.dim) for n, t in zip(counts.rows, tables, strict=True))

    row_wire = travelling(config.wire.rows)
    groups = [layout.tables_of_dim_group(g) for g in range(len(layout.dim_groups))]
    index = 2 if max(sum(counts.rows[t] for t in group) for group in groups) <= FEW_ROWS else 4
    stored = [row_bytes(table.config) for table in tables]
    weighted = sum(n for n, f in zip(counts.ids, layout.features, strict=True) if f.weighted)
    return BatchWork(
        samples=samples,
        num_features=len(layout.features),
        num_tables=len(tables),
        values=counts.stored + samples * (len(schema.dense_names) + len(schema.label_names)),
        ids=ids,
        rows=rows,
        table_rows=counts.rows,
        stored_bytes=sum(n * each.weights for n, each in zip(counts.rows, stored, strict=True)),
        updated_bytes=sum(
            n * (each.weights + each.state) for n, each in zip(counts.rows, stored, strict=True)
        ),
        pooled_bytes=sum(
            4 * n * tables[f.table].dim for n, f in zip(counts.ids, layout.features, strict=True)
        ),
        key_bytes=8 * rows,
        row_bytes=row_wire,
        feed_bytes=row_wire
        + fixed_bytes(
            schema, layout, samples=samples, ids=ids, rows=rows, weighted=weighted, index_bytes=index
        ),
        gradient_bytes=travelling(config.wire.gradients),
    )


def assumed_counts(
    layout: Layout, ids_per_sample: tuple[float, ...], stored_per_sample: float, unique_share: float
) -> Counting:
    """Returns a counting for batches in which a given share of the ids are different ones."""

    def counts(samples: int) -> Counts:
        ids = tuple(samples * n for n in ids_per_sample)
        rows = np.zeros(len(layout.tables))
        for n, feature in zip(ids, layout.features, strict=True):
            rows[feature.table] += n * unique_share
        return Counts(ids, tuple(rows.tolist()), samples * stored_per_sample)

    return counts
