"""Implements an embedding worker without any transport: it turns samples into keys and rows into batches.

Shape letters: B samples, N ids, U unique rows, U_g rows of a dim group, D_g its dim, T tables, P servers,
G dim groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np

from persia_hpc._native import Dedup, Deduplicator, Parts, RecentRows, hash_ids
from persia_hpc.arrays import Array
from persia_hpc.config import Config, HashConfig
from persia_hpc.config.retrieval import logq_source
from persia_hpc.errors import UserError
from persia_hpc.protocol.row_batch import RowBatch
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.catalogue import Catalogue, ItemShares
from persia_hpc.samples.sequences import check_columns
from persia_hpc.samples.source import Source
from persia_hpc.table_layout import FeatureLayout, Layout
from persia_hpc.user_objects import load_object

MOST_IDS = 1 << 30  # of a table in a batch, which is what `Deduplicator` takes
Transform = Callable[[SampleBatch, int, int], SampleBatch]


@dataclass
class HeldRows:
    """Says which rows of a batch the trainer holds from earlier steps, so that they need not be sent.

    Shapes:
    wanted: uint8 [U], 1 for rows to send. before: uint32 [U+1], how many rows before each one are sent.
    places: uint32 [U] and rings: int64 [G, 2], as in `RowBatch`.
    ages: its bit `a` is 1 if a row is used again that was sent `a` steps ago.
    """

    wanted: Array
    places: Array
    rings: Array
    ages: int
    before: Array


class RowRequest(NamedTuple):
    """Holds what the servers are asked for, each its part.

    Shapes:
    keys: uint64 [U]. counts: uint32 [T], rows of each table.
    wanted: uint8 [U], 1 for rows that must travel; None if all must.
    """

    keys: Parts
    counts: Parts
    wanted: Parts | None = None


@dataclass
class KeyBatch:
    """Holds one (step, trainer) in progress: its keys were asked for; its rows arrive, then its gradients."""

    step: int
    trainer: int
    num_global: int
    sample: SampleBatch
    dedup: Dedup
    bag_offsets: dict[str, Array]
    missing: set[int]  # servers whose rows have not arrived
    slices: Array | None = None  # uint64 [S, B], the ids by which an evaluation is sliced
    id_weights: dict[str, Array] = field(default_factory=dict)
    log_q: Array | None = None
    item_keys: Array | None = None
    rows: list[Array] = field(default_factory=list)
    unpatched: set[int] = field(default_factory=set)  # and in `fresh`, whose patches have not
    staleness: int = 0  # of the rows that were pulled
    held: HeldRows | None = None

    @property
    def before(self) -> Array | None:
        """Returns how many of the rows that travel lie before each row, uint32 [U+1]; None if all travel."""
        return None if self.held is None else self.held.before

    def owed(self, what: str) -> str:
        """Returns which part of the batch that `what` names is late from which servers; "" if none is."""
        part, servers = ("rows", self.missing) if self.missing else ("the patch", self.unpatched)
        late = ", ".join(map(str, sorted(servers)))
        return f"{part} of {what} from parameter server {late}" if servers else ""


def keep_last(column: IdColumn, max_length: int) -> IdColumn:
    """Returns a multi-hot column whose samples keep at most their last `max_length` ids."""
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
    weights = None if column.weights is None else column.weights[index]
    return IdColumn(column.values[index], new_offsets.astype(np.uint32), weights)


def shares_of_weights(weights: Array, offsets: Array) -> Array:
    """Returns weights [N] over the sum of their sample's; zeros where that is zero.

    Shapes: `weights` float32 [N] and `offsets` uint32 [B+1] in, float32 [N] out.
    """
    lengths: Array = np.diff(offsets.astype(np.int64))
    filled = lengths > 0
    totals = np.zeros(len(lengths))
    if filled.any():
        totals[filled] = np.add.reduceat(weights, offsets[:-1][filled], dtype=np.float64)
    each = np.repeat(totals, lengths)
    shares = np.divide(weights, each, out=np.zeros(len(weights)), where=each != 0)
    return shares.astype(np.float32)


def hash_column(column: IdColumn, hashing: HashConfig) -> IdColumn:
    """Returns a column in which each id is replaced by the `hashing.rounds` rows that stand for it."""
    values = hash_ids(column.values, rounds=hashing.rounds, size=hashing.size)
    if hashing.rounds == 1:
        return IdColumn(values, column.offsets, column.weights)
    offsets = column.offsets
    if offsets is None:
        offsets = np.arange(len(column.values) + 1, dtype=np.uint32)
    weights = None if column.weights is None else np.repeat(column.weights, hashing.rounds)
    return IdColumn(values, offsets * np.uint32(hashing.rounds), weights)


class EmbeddingWorker:
    """Deduplicates ids, splits keys by server, assembles rows, splits gradients. It is not thread-safe."""

    def __init__(
        self,
        layout: Layout,
        *,
        num_servers: int = 1,
        seed: int = 1,
        transform: str | None = None,
        worker_rank: int = 0,
        reuse_steps: int = 0,
        slices: Sequence[str] = (),
        exclude: str | None = None,
        items: tuple[str, ItemShares | None] | None = None,
    ):
        """slices: features whose ids evaluations bring; exclude: one all of whose ids they bring.

        items: the feature that tells items apart, and their shares for `RowBatch.log_q`; without shares
        batches have `RowBatch.item_keys`.
        """
        self.slices = tuple(slices)
        self._exclude = exclude
        self._items = items
        self.layout = layout
        self.num_servers = num_servers
        self.worker_rank = worker_rank
        self.reuse_steps = reuse_steps
        self.max_staleness = 0
        self._recent: dict[int, RecentRows] = {}  # by trainer
        self._stalenesses: dict[int, dict[int, int]] = {}  # of the last pulls, by trainer and step
        self.seed = seed
        self.transform: Transform | None = (
            cast(Transform, load_object(transform, "data.transform")) if transform else None
        )
        self._dedup = Deduplicator(
            tables=[f.table for f in layout.features],
            groups=list(layout.dim_group_of_table),
            num_buckets=[t.num_buckets for t in layout.tables],
            bounds=layout.bounds(num_servers),
        )

    @classmethod
    def of(
        cls,
        config: Config,
        layout: Layout,
        num_servers: int = 1,
        worker_rank: int = 0,
        sources: Mapping[str, Source] | None = None,
    ) -> EmbeddingWorker:
        """Returns a worker as a configuration describes it. sources: the splits that it reads.

        Raises UserError for a catalogue without the weights that the configuration needs.
        """
        data, items, sources = config.data, None, sources or {}
        catalogue = sources.get("items")
        source = logq_source(config) if "train" in sources else "off"
        if source != "off" and isinstance(catalogue, Catalogue):
            shares = catalogue.shares() if source == "weights" else None
            items = (str(data.item_feature), shares)
        return cls(
            layout,
            num_servers=num_servers,
            seed=config.seed,
            transform=config.data.transform,
            worker_rank=worker_rank,
            reuse_steps=config.wire.reuse_steps,
            slices=(*config.train.slices, *([data.item_feature] if data.item_feature else [])),
            exclude=data.exclude_feature,
            items=items,
        )

    def prepare(
        self, sample: SampleBatch, *, step: int, trainer: int, num_global: int, evaluation: bool = False
    ) -> KeyBatch:
        """Turns samples into unique keys of each table, after `data.transform` and the cut to `max_length`.

        num_global: samples of the step over all trainers. evaluation: the batch is scored only, so its
        trainer gets the ids of the slices too.
        Raises UserError if `data.transform` returns anything but as many samples, and DataError if features
        of one sequence differ in their number of ids.
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
        check_columns(sample.ids, self.layout.sequences, f"step {step}: a batch")
        values: list[Array] = []
        bags: dict[str, Array] = {}
        weights: dict[str, Array] = {}
        for feature in self.layout.features:
            column = self._column(sample, feature)
            values.append(column.values)
            if feature.multi and feature.shares is None:
                assert column.offsets is not None
                bags[feature.name] = column.offsets
            if column.weights is not None:
                weights[feature.name] = column.weights
        if sum(map(len, values)) > MOST_IDS:
            self._check_ids(values, step)
        dedup = self._dedup.run(values)
        missing = set(range(self.num_servers))
        slices = None
        if evaluation and self.slices:
            slices = np.stack([sample.ids[name].values for name in self.slices])
        batch = KeyBatch(step, trainer, num_global, sample, dedup, bags, missing, slices, weights)
        if not evaluation and self._items is not None:
            self._add_items(batch, *self._items)
        return batch

    def _add_items(self, batch: KeyBatch, feature: str, shares: ItemShares | None) -> None:
        """Adds what the trainer must know of the rows of the items' table: their keys, or their shares."""
        dedup = batch.dedup
        table = next(f.table for f in self.layout.features if f.name == feature)
        group = self.layout.tables[table].dim_group
        first, end = (int(n) for n in dedup.group_offsets[group : group + 2])
        if shares is None:
            batch.item_keys = dedup.keys[first:end]
            return
        rows = slice(int(dedup.table_offsets[table]), int(dedup.table_offsets[table + 1]))
        batch.log_q = np.zeros(end - first, np.float32)
        batch.log_q[rows.start - first : rows.stop - first] = shares.of(dedup.keys[rows])

    def _check_ids(self, values: Sequence[Array], step: int) -> None:
        for number, table in enumerate(self.layout.tables):
            of_table = zip(self.layout.features, values, strict=True)
            count = sum(len(ids) for feature, ids in of_table if feature.table == number)
            if count > MOST_IDS:
                raise UserError(
                    f"step {step}: a batch has {count:,} ids of table {table.name!r}, expected at most "
                    f"{MOST_IDS:,}; lower data.batch_size or data.evaluate_batch_size, or set max_length"
                )

    def reuse(self, batch: KeyBatch) -> None:
        """Leaves out of a batch's pull the rows that its trainer still holds (`reuse_steps`).

        Must be called in order of step for each trainer, and not for evaluations.
        """
        if self.reuse_steps == 0:
            return
        if batch.trainer not in self._recent:
            groups = list(self.layout.dim_group_of_table)
            self._recent[batch.trainer] = RecentRows(groups=groups, reuse_steps=self.reuse_steps)
        recent, dedup = self._recent[batch.trainer], batch.dedup
        wanted, places, rings, ages = recent.find(dedup.keys, dedup.table_offsets, step=batch.step)
        before = np.zeros(len(wanted) + 1, np.uint32)
        np.cumsum(wanted, out=before[1:])
        batch.held = HeldRows(wanted, places, rings, ages, before)

    def forget_rows(self) -> None:
        """Stops the use of rows of earlier batches from here on: a resumed run has none."""
        self._recent.clear()

    def _column(self, sample: SampleBatch, feature: FeatureLayout) -> IdColumn:
        column = sample.ids[feature.name]
        if (column.weights is not None) != feature.weighted:
            got = "none" if feature.weighted else "some"
            raise UserError(
                f"data.transform returned {got} of the weights of {feature.name!r}, expected "
                f"{'one for each id' if feature.weighted else 'none'}, as in the dataset"
            )
        if column.offsets is not None and feature.max_length is not None:
            column = keep_last(column, feature.max_length)
        if column.weights is not None and feature.pooling == "mean":
            assert column.offsets is not None
            shares = shares_of_weights(column.weights, column.offsets)
            column = IdColumn(column.values, column.offsets, shares)
        hashing = self.layout.tables[feature.table].config.hash
        return column if hashing is None else hash_column(column, hashing)

    def request(self, batch: KeyBatch) -> RowRequest:
        """Returns what the servers are asked for."""
        shares, held = batch.dedup.shares, batch.held
        wanted = None if held is None else shares.rows(held.wanted)
        return RowRequest(shares.rows(batch.dedup.keys), shares.counts, wanted)

    def add_rows(self, batch: KeyBatch, server: int, rows: Sequence[Array]) -> bool:
        """Copies a server's answer into the batch; returns whether all servers have answered.

        Shapes:
        rows: for each dim group the server's part of the travelling rows, [U_g, D_g] in a wire format.
        """
        before = batch.before
        if not batch.rows:
            offsets = batch.dedup.group_offsets
            groups = (offsets if before is None else before[offsets]).tolist()
            batch.rows = [
                np.empty((end - begin, part.shape[1]), part.dtype)
                for part, (begin, end) in zip(rows, pairwise(groups), strict=True)
            ]
        batch.dedup.shares.fill(server, rows, batch.rows, before)
        batch.missing.discard(server)
        return not batch.missing

    def assemble(self, batch: KeyBatch, rows: list[Array] | None = None) -> RowBatch:
        """Returns the trainer's batch, once all servers have answered.

        rows: the answer of the only server, without a copy; by default the rows that `add_rows` has copied.
        """
        sample, dedup, held = batch.sample, batch.dedup, batch.held
        excluded = None if batch.slices is None or self._exclude is None else sample.ids[self._exclude]
        return RowBatch(
            step=batch.step,
            trainer=batch.trainer,
            num_samples=sample.num_samples,
            num_global=batch.num_global,
            rows=batch.rows if rows is None else rows,
            indices=dedup.indices,
            feature_offsets=dedup.feature_offsets,
            bag_offsets=batch.bag_offsets,
            id_weights=batch.id_weights,
            row_offsets=dedup.row_offsets,
            positions=dedup.positions,
            dim_group_offsets=dedup.group_offsets,
            dense=sample.dense,
            labels=self.layout.tasks.select(sample.labels),
            weight=sample.weight,
            group=sample.group,
            slices=batch.slices,
            log_q=batch.log_q,
            item_keys=batch.item_keys,
            excluded=None if excluded is None else excluded.values,
            excluded_offsets=None if excluded is None else excluded.starts,
            staleness=self._staleness(batch),
            places=None if held is None else held.places,
            rings=None if held is None else held.rings,
            holder=self.worker_rank,
        )

    def _staleness(self, batch: KeyBatch) -> int:
        """Returns the staleness, in steps, of the batch's stalest row. A reused row ages by one each step."""
        if batch.held is None:
            return batch.staleness
        known = self._stalenesses.setdefault(batch.trainer, {})
        for step in [s for s in known if s < batch.step - self.reuse_steps]:
            del known[step]
        known[batch.step] = staleness = batch.staleness
        for age in range(1, self.reuse_steps + 1):
            if batch.held.ages >> age & 1:
                staleness = max(staleness, age + known[batch.step - age])
        self.max_staleness = max(self.max_staleness, staleness)
        return staleness

    def statistics(self) -> dict[str, int]:
        """Returns counters for summary.json."""
        return {"max_staleness": self.max_staleness}

    def split_gradients(self, batch: KeyBatch, gradients: Sequence[Array]) -> list[Parts]:
        """Returns the servers' parts of the row gradients, not copied.

        Shapes:
        gradients: for each dim group [U_g, D_g] in a wire format.
        """
        return batch.dedup.shares.group_rows(gradients)
