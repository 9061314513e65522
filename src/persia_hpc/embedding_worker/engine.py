"""An embedding worker without any transport: samples become unique keys, rows become a trainer's batch.

Shape letters: B samples, N ids, U unique rows, T tables, P servers, G groups, D dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from persia_hpc._native import Dedup, Deduplicator, hash_ids
from persia_hpc.config import HashConfig
from persia_hpc.errors import UserError
from persia_hpc.feed import FeedBatch
from persia_hpc.layout import FeatureLayout, Layout
from persia_hpc.loading import load_object
from persia_hpc.samples.batch import IdColumn, SampleBatch

Array = npt.NDArray[Any]
Transform = Callable[[SampleBatch, int, int], SampleBatch]


@dataclass
class KeyBatch:
    """One (step, trainer) on its way: unique keys out, rows coming in, gradients coming back."""

    step: int
    trainer: int
    num_global: int
    sample: SampleBatch
    dedup: Dedup
    bag_offsets: dict[str, Array]
    missing: set[int]  # servers whose rows have not arrived
    rows: list[Array] = field(default_factory=list)
    staleness: int = 0

    @property
    def waits_for(self) -> str:
        """The missing servers, for a message."""
        return ", ".join(map(str, sorted(self.missing)))


def keep_last(column: IdColumn, max_length: int) -> IdColumn:
    """A multi-hot column whose samples keep at most their last `max_length` ids."""
    assert column.offsets is not None
    offsets = column.offsets.astype(np.int64)
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, max_length)
    if np.array_equal(kept, lengths):
        return column
    new_offsets = np.zeros(len(offsets), np.int64)
    np.cumsum(kept, out=new_offsets[1:])
    # Position of each kept id: the end of its sample less what is still to come in it.
    index = np.arange(new_offsets[-1]) + np.repeat(offsets[1:] - new_offsets[1:], kept)
    return IdColumn(column.values[index], new_offsets.astype(np.uint32))


def hash_column(column: IdColumn, hashing: HashConfig) -> IdColumn:
    """The rows that stand for each id, in place of the ids: `hashing.rounds` times as many in each sample."""
    values = hash_ids(column.values, rounds=hashing.rounds, size=hashing.size)
    if hashing.rounds == 1:
        return IdColumn(values, column.offsets)
    offsets = column.offsets
    if offsets is None:
        offsets = np.arange(len(column.values) + 1, dtype=np.uint32)
    return IdColumn(values, offsets * np.uint32(hashing.rounds))


class EmbeddingWorker:
    """Dedup, splitting by server, assembling rows, splitting gradients. Not thread-safe."""

    def __init__(self, layout: Layout, *, num_servers: int = 1, seed: int = 1, transform: str | None = None):
        self.layout = layout
        self.num_servers = num_servers
        self.seed = seed
        self.transform: Transform | None = (
            cast(Transform, load_object(transform, "data.transform")) if transform else None
        )
        self._dedup = Deduplicator(
            tables=[f.table for f in layout.features],
            groups=list(layout.group_of_table),
            num_buckets=[t.num_buckets for t in layout.tables],
            bounds=layout.bounds(num_servers),
        )

    def prepare(self, sample: SampleBatch, *, step: int, trainer: int, num_global: int) -> KeyBatch:
        """Turns samples into unique keys per table; ids of a multi-hot feature are cut to its max_length
        first.
        """
        if self.transform is not None and sample.num_samples:
            count = sample.num_samples
            sample = self.transform(sample, self.seed, step)
            if not isinstance(sample, SampleBatch) or sample.num_samples != count:
                got = (
                    f"{sample.num_samples} samples"
                    if isinstance(sample, SampleBatch)
                    else type(sample).__name__
                )
                raise UserError(f"data.transform returned {got}, expected a SampleBatch of {count} samples")
            sample.validate()
        values: list[Array] = []
        bags: dict[str, Array] = {}
        for feature in self.layout.features:
            column = self._column(sample, feature)
            values.append(column.values)
            if feature.multi:
                assert column.offsets is not None
                bags[feature.name] = column.offsets
        dedup = self._dedup.run(values)
        return KeyBatch(step, trainer, num_global, sample, dedup, bags, set(range(self.num_servers)))

    def _column(self, sample: SampleBatch, feature: FeatureLayout) -> IdColumn:
        column = sample.ids[feature.name]
        if column.offsets is not None and feature.max_length is not None:
            column = keep_last(column, feature.max_length)
        hashing = self.layout.tables[feature.table].config.hash
        return column if hashing is None else hash_column(column, hashing)

    def request(self, batch: KeyBatch, server: int) -> tuple[list[Array], Array]:
        """What server `server` is asked for: slices of keys (uint64), and uint32 [T] counts a table."""
        offsets = batch.dedup.server_offsets
        begins, ends = offsets[:, server], offsets[:, server + 1]
        if self.num_servers == 1:
            return [batch.dedup.keys], (ends - begins).astype(np.uint32)
        return (
            [batch.dedup.keys[b:e] for b, e in zip(begins.tolist(), ends.tolist(), strict=True)],
            (ends - begins).astype(np.uint32),
        )

    def fill(self, batch: KeyBatch, server: int, rows: Sequence[Array]) -> bool:
        """Takes a server's answer (one array of U_g^p rows a group, as they travel; copied); True when all
        servers have answered.
        """
        groups = batch.dedup.group_offsets
        if not batch.rows:
            batch.rows = [
                np.empty((int(groups[g + 1]) - int(groups[g]), rows[g].shape[1]), rows[g].dtype)
                for g in range(len(self.layout.group_dims))
            ]
        for g, pieces in enumerate(self.pieces(batch, server)):
            at = 0
            for begin, end in pieces:
                batch.rows[g][begin:end] = rows[g][at : at + end - begin]
                at += end - begin
        batch.missing.discard(server)
        return not batch.missing

    def pieces(self, batch: KeyBatch, server: int) -> list[list[tuple[int, int]]]:
        """For each group the [begin, end) runs of its rows that are the server's, in table order."""
        offsets, groups = batch.dedup.server_offsets, batch.dedup.group_offsets
        if self.num_servers == 1:
            return [[(0, int(groups[g + 1]) - int(groups[g]))] for g in range(len(groups) - 1)]
        result: list[list[tuple[int, int]]] = []
        for g in range(len(self.layout.group_dims)):
            start = int(groups[g])
            result.append(
                [
                    (int(offsets[t, server]) - start, int(offsets[t, server + 1]) - start)
                    for t in self.layout.tables_of_group(g)
                ]
            )
        return result

    def feed(self, batch: KeyBatch) -> FeedBatch:
        """The trainer's batch, once all rows are there."""
        sample, dedup = batch.sample, batch.dedup
        return FeedBatch(
            step=batch.step,
            trainer=batch.trainer,
            num_samples=sample.num_samples,
            num_global=batch.num_global,
            rows=batch.rows,
            indices=dedup.indices,
            feature_offsets=dedup.feature_offsets,
            bag_offsets=batch.bag_offsets,
            row_offsets=dedup.row_offsets,
            positions=dedup.positions,
            group_offsets=dedup.group_offsets,
            dense=sample.dense,
            labels=sample.labels,
            weight=sample.weight,
            group=sample.group,
            staleness=batch.staleness,
        )

    def push(self, batch: KeyBatch, server: int, gradients: Sequence[Array]) -> list[list[Array]]:
        """The server's part of the row gradients (one [U_g, D_g] array a group): slices of each group, no
        copies.
        """
        return [
            [gradients[g][begin:end] for begin, end in pieces]
            for g, pieces in enumerate(self.pieces(batch, server))
        ]
