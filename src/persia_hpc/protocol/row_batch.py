"""Defines what a worker hands to a trainer for one (step, trainer), and its form as a list of arrays.

Shape letters: B samples, N ids, U unique rows, U_g rows of a dim group, D_g its dim, F features, G dim
groups, K dense features, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from persia_hpc.arrays import Array
from persia_hpc.errors import PersiaError
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout

NO_WEIGHTS: Mapping[str, int] = {}


class Releasable(Protocol):
    """Describes what owns the memory of a batch, such as a record in a ring."""

    def release(self) -> None:
        """Gives the memory back."""


@dataclass
class RowBatch:
    """Holds one trainer's part of a step, rows included. Its arrays are valid until `release`.

    Shapes:
    rows: for each dim group U_g rows of dim D_g in a wire format (`wire.WIRES`).
    indices: uint16 or uint32 [N], each id's row relative to its dim group.
    feature_offsets: uint32 [F+1], ids of a feature.
    bag_offsets: uint32 [B+1] of each multi-hot feature, but of the first of those that share them.
    id_weights: float32 [its ids] of each feature whose ids have weights: what their rows are multiplied by,
    with mean pooling over the sum of the sample's weights; of a jagged feature the weights as they are.
    row_offsets: uint32 [U+1] and positions: uint32 [N], the transpose: the id positions that use each row.
    dim_group_offsets: uint32 [G+1].
    dense: float32 [B, K]; labels: float32 [B, L]; weight: float32 [B]; group (of GAUC): int64 [B].
    num_global: samples of the step over all trainers.
    staleness: the number of steps whose updates the stalest row may miss.

    With `wire.reuse_steps` the trainer keeps rows of earlier steps, for each dim group in a ring of rows, and
    only the others travel:
    rings: int64 [G, 2], for each dim group the first place that this batch's rows take, and the ring's size.
    places: uint32 [U], where in its ring each row of the batch is then.
    holder: worker_rank of the worker whose rings these are.

    In evaluations with `train.slices`:
    slices: uint64 [S, B], the ids of the S features; what travels has no such array otherwise.

    For retrieval models, and what travels has no such arrays otherwise:
    log_q: float32 [U_g], in training, of the rows of the items' dim group: see `Batch.log_q`; 0 for others.
    item_keys: uint64 [U_g], in training, the keys of the same rows, by which trainers count items.
    excluded: uint64 [E] and excluded_offsets: uint32 [B+1], in evaluations: each sample's unranked items.
    """

    step: int
    trainer: int
    num_samples: int
    num_global: int
    rows: list[Array]
    indices: Array
    feature_offsets: Array
    bag_offsets: dict[str, Array]
    row_offsets: Array
    positions: Array
    dim_group_offsets: Array
    dense: Array
    labels: Array
    weight: Array | None = None
    group: Array | None = None
    slices: Array | None = None
    log_q: Array | None = None
    item_keys: Array | None = None
    excluded: Array | None = None
    excluded_offsets: Array | None = None
    id_weights: dict[str, Array] = field(default_factory=dict)
    staleness: int = 0
    places: Array | None = None
    rings: Array | None = None
    holder: int = 0
    record: Releasable | None = field(default=None, repr=False)  # owns the memory

    def num_rows(self, dim_group: int) -> int:
        """Returns U_g, the unique rows of a dim group, whether they have travelled or not."""
        return int(self.dim_group_offsets[dim_group + 1]) - int(self.dim_group_offsets[dim_group])

    def release(self) -> None:
        """Gives the arrays' memory back to the ring that holds it; they may not be read after this."""
        if self.record is not None:
            self.record.release()
            self.record = None


def pack_row_batch(batch: RowBatch) -> list[Array | list[Array]]:
    """Returns the arrays of a batch's record, in the order that `unpack_row_batch` expects."""
    empty = np.empty(0, np.float32)
    bags: Array | list[Array] = list(batch.bag_offsets.values()) or np.empty(0, np.uint32)
    header = np.array([batch.num_samples, batch.num_global, batch.staleness, batch.holder], np.int64)
    return [
        header,
        batch.indices,
        batch.feature_offsets,
        bags,
        batch.row_offsets,
        batch.positions,
        batch.dim_group_offsets,
        batch.dense,
        batch.labels,
        batch.weight if batch.weight is not None else empty,
        batch.group if batch.group is not None else np.empty(0, np.int64),
        batch.places if batch.places is not None else np.empty(0, np.uint32),
        batch.rings if batch.rings is not None else np.empty((0, 2), np.int64),
        # How many these are depends on the layout:
        *([list(batch.id_weights.values())] if batch.id_weights else []),
        *batch.rows,
        *_pack_tail(batch),
    ]


def _pack_tail(batch: RowBatch) -> list[Array]:
    """Returns what most batches don't have: nothing, the slices, or all five arrays."""
    others = (batch.log_q, batch.item_keys, batch.excluded, batch.excluded_offsets)
    if all(array is None for array in others):
        return [] if batch.slices is None else [batch.slices]
    slices = np.empty((0, 0), np.uint64) if batch.slices is None else batch.slices
    log_q = np.empty(0, np.float32) if batch.log_q is None else batch.log_q
    item_keys = np.empty(0, np.uint64) if batch.item_keys is None else batch.item_keys
    excluded = np.empty(0, np.uint64) if batch.excluded is None else batch.excluded
    offsets = np.empty(0, np.uint32) if batch.excluded_offsets is None else batch.excluded_offsets
    return [slices, log_q, item_keys, excluded, offsets]


NUM_FIXED = 13  # arrays before the weights, if there are any, and the rows


def fixed_bytes(
    schema: DatasetSchema,
    layout: Layout,
    *,
    samples: float,
    ids: float,
    rows: float,
    weighted: float = 0.0,
    index_bytes: int = 4,
    reuse: bool = False,
) -> float:
    """Returns the bytes of a batch's record beside its rows and the few that every record has.

    samples, ids, rows, weighted (ids with weights): how many the batch has; means need not be whole.
    index_bytes: 2 or 4, the width of `indices`. reuse: whether rows have `places`.
    """
    each_sample = 4 * (len(schema.dense_names) + len(schema.label_names) + schema.has_weight)
    each_sample += 8 * schema.has_group + 4 * len(layout.bags)
    return 4 * weighted + (index_bytes + 4) * ids + 4 * (1 + reuse) * rows + each_sample * samples


def unpack_row_batch(
    step: int,
    trainer: int,
    arrays: Sequence[Array],
    multi: Sequence[str],
    record: Releasable | None = None,
    weighted: Mapping[str, int] = NO_WEIGHTS,
) -> RowBatch:
    """Returns the batch that `pack_row_batch` has packed.

    multi: names of the features whose bag offsets travel, in order. record: what owns the arrays' memory.
    weighted: the features whose ids have weights and their places among all, `Layout.weighted`.
    Raises PersiaError if there are too few arrays.
    """
    num_fixed = NUM_FIXED + bool(weighted)
    if len(arrays) < num_fixed:
        raise PersiaError(f"got a batch of {len(arrays)} arrays, expected at least {num_fixed}")
    (
        header,
        indices,
        feature_offsets,
        bags,
        row_offsets,
        positions,
        dim_group_offsets,
        dense,
        labels,
        weight,
        group,
        places,
        rings,
    ) = arrays[:NUM_FIXED]
    num_samples, num_global, staleness, holder = (int(x) for x in header)
    rows_end = num_fixed + len(dim_group_offsets) - 1
    tail = arrays[rows_end:]
    slices = tail[0] if tail else None
    log_q, item_keys, excluded, excluded_offsets = tail[1:5] if len(tail) > 1 else (None,) * 4
    return RowBatch(
        step=step,
        trainer=trainer,
        num_samples=num_samples,
        num_global=num_global,
        rows=list(arrays[num_fixed:rows_end]),
        indices=indices,
        feature_offsets=feature_offsets,
        bag_offsets=dict(zip(multi, bags.reshape(-1, num_samples + 1), strict=True)) if multi else {},
        row_offsets=row_offsets,
        positions=positions,
        dim_group_offsets=dim_group_offsets,
        dense=dense,
        labels=labels,
        weight=weight if len(weight) else None,
        group=group if len(group) else None,
        slices=None if slices is None or not len(slices) else slices,
        log_q=None if log_q is None or not len(log_q) else log_q,
        item_keys=None if item_keys is None or not len(item_keys) else item_keys,
        excluded=excluded if excluded_offsets is not None and len(excluded_offsets) else None,
        excluded_offsets=None if excluded_offsets is None or not len(excluded_offsets) else excluded_offsets,
        id_weights=_split_weights(arrays[NUM_FIXED], feature_offsets, weighted) if weighted else {},
        staleness=staleness,
        places=places if len(rings) else None,
        rings=rings if len(rings) else None,
        holder=holder,
        record=record,
    )


def _split_weights(joined: Array, feature_offsets: Array, weighted: Mapping[str, int]) -> dict[str, Array]:
    parts: dict[str, Array] = {}
    begin = 0
    for name, place in weighted.items():
        end = begin + int(feature_offsets[place + 1]) - int(feature_offsets[place])
        parts[name] = joined[begin:end]
        begin = end
    if begin != len(joined):
        raise PersiaError(f"got a batch with {len(joined)} weights of ids, expected {begin}")
    return parts
