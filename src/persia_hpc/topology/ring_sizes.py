"""How large rings must be for the batches of a configuration.

A trainer takes nothing from its ring while it computes, so what it needs next should be there already: a ring
that a batch doesn't fit into makes it wait for the rest.
"""

from __future__ import annotations

import math

from persia_hpc.config import Config
from persia_hpc.protocol.wire import WIRES, Wire
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import FeatureLayout, Layout

from .channels import RingBytes

MOST = 256 << 20
HEAD = 1 << 16  # a record's header, its directory, and rounding of its arrays to lines


def ring_sizes(
    config: Config, layout: Layout, schema: DatasetSchema, *, num_servers: int, num_trainers: int
) -> RingBytes:
    """`transport.ring_bytes` for all, if it is given. Else a ring holds the largest record that is likely (no
    id twice in a batch, multi-hot features of average length) and a third more; at most 256 MiB.

    An entry of a ring is at most 3/8 of it, so a record with half as many unique ids, which is more than
    skewed data have, is one entry.
    """
    if config.transport.ring_bytes is not None:
        return RingBytes.same(config.transport.ring_bytes)
    samples = math.ceil(config.data.batch_size / num_trainers)
    ids = [samples * _ids_per_sample(feature, schema) for feature in layout.features]
    unique = [_unique(n, feature, layout) for n, feature in zip(ids, layout.features, strict=True)]

    def row_bytes(wire: Wire) -> float:
        rows = zip(unique, layout.features, strict=True)
        return sum(
            n * math.prod(wire.shape(1, layout.tables[f.table].dim)) * wire.dtype.itemsize for n, f in rows
        )

    rows, gradients = row_bytes(WIRES[config.wire.rows]), row_bytes(WIRES[config.wire.gradients])
    reuse = config.wire.reuse_steps > 0  # a byte and a place more for each row
    lookups = 8 * sum(ids) + 4 * (1 + reuse) * sum(unique)  # indices, positions, row offsets
    width = 4 * (len(schema.dense_names) + len(schema.label_names) + schema.has_weight + 2 * schema.has_group)
    offsets = 4 * sum(feature.multi for feature in layout.features)
    # Servers' parts of a batch differ a little.
    part = 1 if num_servers == 1 else 1.25 / num_servers
    return RingBytes(
        pull=_ring((8 + reuse) * sum(unique) * part),
        push=_ring(gradients * part),
        rows=_ring(rows * part),
        feed=_ring(rows + lookups + samples * (width + offsets)),
        gradients=_ring(gradients),
    )


def _ring(record_bytes: float) -> int:
    return min(MOST, math.ceil((record_bytes + HEAD) * 4 / 3 / 4096) * 4096)


def _ids_per_sample(feature: FeatureLayout, schema: DatasetSchema) -> float:
    stored = schema.feature(feature.name)
    if not stored.multi:
        return feature.rounds
    limit = feature.max_length or math.inf
    mean = stored.mean_length or feature.max_length or 1.0
    return feature.rounds * min(mean, limit)


def _unique(num_ids: float, feature: FeatureLayout, layout: Layout) -> float:
    hashing = layout.tables[feature.table].config.hash
    return num_ids if hashing is None else min(num_ids, hashing.rounds * hashing.size)
