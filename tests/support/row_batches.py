"""Fed batches made from ids, the way an embedding worker makes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from persia_hpc import _native
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.trainer.batch import Batch, FeatureSpec, Inputs
from persia_hpc.trainer.pooling.embed import Pooling


def make_inputs(features: list[tuple[str, int, str, bool]], *, num_dense: int = 2, labels: int = 1) -> Inputs:
    """Features as (name, dim, pooling, multi); each has a table of its own, groups are ordered by dim."""
    dims = sorted({dim for _, dim, _, _ in features})
    specs = tuple(
        FeatureSpec(name, name, dims.index(dim), dim, pooling, multi)
        for name, dim, pooling, multi in features
    )
    return Inputs(specs, num_dense, tuple(f"label{i}" for i in range(labels)))


def random_ids(
    inputs: Inputs, num_samples: int, rng: np.random.Generator, *, most: int = 3
) -> dict[str, list]:
    """For each feature the list of ids of each sample."""
    return {
        f.name: [
            rng.integers(0, 12, rng.integers(0, most + 1) if f.multi else 1).tolist()
            for _ in range(num_samples)
        ]
        for f in inputs.features
    }


def make_row_batch(
    inputs: Inputs,
    ids: dict[str, list],
    rng: np.random.Generator,
    *,
    dtype: type = np.float32,
    unused_rows: bool = False,
) -> RowBatch:
    """A batch with these ids and normal rows; `unused_rows` gives each group a last row that no id uses."""
    num_samples = len(next(iter(ids.values()), []))
    values = [np.asarray([i for bag in ids[f.name] for i in bag], np.uint64) for f in inputs.features]
    order = sorted(range(len(inputs.features)), key=lambda i: inputs.features[i].dim_group)
    dedup = _native.Deduplicator(
        tables=[order.index(i) for i in range(len(order))],
        groups=[inputs.features[i].dim_group for i in order],
        num_buckets=[16] * len(order),
        bounds=[[0, 16]] * len(order),
    ).run(values)
    num_groups = len(dedup.group_offsets) - 1
    dims = {f.dim_group: f.dim for f in inputs.features}
    sizes = np.diff(dedup.group_offsets.astype(np.int64)) + unused_rows
    row_offsets, group_offsets = dedup.row_offsets, dedup.group_offsets
    if unused_rows:
        ends = dedup.group_offsets[1:]
        row_offsets = np.insert(row_offsets, ends.astype(np.int64), row_offsets[ends]).astype(np.uint32)
        group_offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    return RowBatch(
        step=1,
        trainer=0,
        num_samples=num_samples,
        num_global=num_samples,
        rows=[rng.normal(size=(sizes[g], dims[g])).astype(dtype) for g in range(num_groups)],
        indices=dedup.indices,
        feature_offsets=dedup.feature_offsets,
        bag_offsets={
            f.name: np.cumsum([0, *map(len, ids[f.name])]).astype(np.uint32)
            for f in inputs.features
            if f.multi
        },
        row_offsets=row_offsets,
        positions=dedup.positions,
        dim_group_offsets=group_offsets,
        dense=rng.normal(size=(num_samples, inputs.num_dense)).astype(np.float32),
        labels=rng.integers(0, 2, (num_samples, len(inputs.labels))).astype(np.float32),
    )


def random_batch(inputs: Inputs, num_samples: int, seed: int = 0) -> Batch:
    """What a model gets of random ids and rows, ready to learn from."""
    rng = np.random.default_rng(seed)
    row_batch = make_row_batch(inputs, random_ids(inputs, num_samples, rng), rng)
    return Pooling(inputs).embed(row_batch, training=True)[0]


def side_by_side(batch: Batch, inputs: Inputs) -> Tensor:
    """Dense features and all pooled vectors [B, W]."""
    return torch.cat([batch.dense, *(batch.pooled[name] for name in inputs.pooled)], dim=1)
