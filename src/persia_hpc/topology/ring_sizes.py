"""Computes how large rings must be for the batches of a configuration.

A trainer takes nothing from its ring while it computes, so its next batch should lie there already. If a
batch doesn't fit into the ring, the trainer must wait for the rest of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from persia_hpc.config import Config
from persia_hpc.protocol.row_batch import fixed_bytes
from persia_hpc.protocol.wire import WIRES, Wire
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import FeatureLayout, Layout, with_sampled

from .channels import MOST, RingBytes

MOST_OF_TRAINERS = 1 << 30
PATCH_ROOM = 0.5  # of a batch's rows at most, else a patch comes in chunks
HEAD = 1 << 16  # a record's header, its directory, and rounding of its arrays to lines


def ring_sizes(
    config: Config, layout: Layout, schema: DatasetSchema, *, num_servers: int, num_trainers: int
) -> RingBytes:
    """Returns the bytes of each kind of ring: `transport.ring_bytes` if that is set.

    Otherwise a ring holds the largest record that is likely (no id twice in a batch, multi-hot features of
    average length) and a third more. An entry of a ring takes at most 3/8 of it. So a record with half as
    many unique ids is one entry, and skewed data have fewer than that.

    Rings of a trainer have at most 1 GiB, where there is memory for that (`channels.fitting`): it takes
    nothing while it computes, so a batch in chunks is late, and a GPU can't copy it from its ring. Others
    have at most 256 MiB: both ends poll all the time, and chunks only cost a copy.
    """
    fresh = config.mode == "fresh"
    if (same := config.transport.ring_bytes) is not None:
        return replace(RingBytes.same(same), patch=same if fresh else 0)
    schema = with_sampled(config, schema)
    samples = math.ceil(config.data.batch_size / num_trainers)
    ids = [samples * _ids_per_sample(feature, schema) for feature in layout.features]
    unique = [_unique(n, feature, layout) for n, feature in zip(ids, layout.features, strict=True)]

    def row_bytes(wire: Wire) -> float:
        rows = zip(unique, layout.features, strict=True)
        return sum(n * wire.row_bytes(layout.tables[f.table].dim) for n, f in rows)

    rows, gradients = row_bytes(WIRES[config.wire.rows]), row_bytes(WIRES[config.wire.gradients])
    reuse = config.wire.reuse_steps > 0  # each row has a byte more in a pull, and its place in a batch
    weighted = sum(n for n, feature in zip(ids, layout.features, strict=True) if feature.weighted)
    fixed = fixed_bytes(
        schema, layout, samples=samples, ids=sum(ids), rows=sum(unique), weighted=weighted, reuse=reuse
    )
    # Servers' parts of a batch differ a little.
    part = 1 if num_servers == 1 else 1.25 / num_servers
    return RingBytes(
        pull=_ring((8 + reuse) * sum(unique) * part),
        push=_ring(gradients * part),
        rows=_ring(rows * part),
        feed=_ring(rows + fixed, MOST_OF_TRAINERS),
        gradients=_ring(gradients, MOST_OF_TRAINERS),
        patch=_ring(PATCH_ROOM * rows) if fresh else 0,
    )


def _ring(record_bytes: float, most: int = MOST) -> int:
    return min(most, math.ceil((record_bytes + HEAD) * 4 / 3 / 4096) * 4096)


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
