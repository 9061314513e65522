"""The catalogue of a retrieval model (`data.items`), one row for each item, and what is drawn from it.

N items, B samples, C drawn items of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from persia_hpc._native import mix
from persia_hpc.arrays import Array
from persia_hpc.config import Config
from persia_hpc.config.retrieval import MOST_DRAWN, logq_source, sampled_features
from persia_hpc.errors import UserError
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.encoding import check_encodings, matches
from persia_hpc.samples.formats import is_parquet
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.samples.source import FileSource, open_source

BLOCK = 1 << 16  # rows that are read at once


@dataclass(frozen=True)
class ItemShares:
    """Holds the logarithm of each item's share in what is trained on, by the keys of the items.

    Shapes: keys uint64 [N], rising; log_q float32 [N].
    """

    keys: Array
    log_q: Array

    def of(self, keys: Array) -> Array:
        """Returns the logarithms of items, -inf for those that aren't there.

        Shapes: keys uint64 [U] in, float32 [U] out.
        """
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found: Array = np.where(self.keys[places] == keys, self.log_q[places], np.float32(-np.inf))
        return found


class Catalogue:
    """Reads items as samples with all columns of the training data, but no labels. See `Source`.

    Of a feature that the files lack a row has no id, or id 0 if each sample of the training data has one; of
    a dense column that they lack it has NaN.
    """

    def __init__(self, files: FileSource, trained: DatasetSchema, item_feature: str) -> None:
        """Reads what tells items apart.

        Raises UserError for an item that is there twice.
        """
        self.files = files
        self._trained = trained
        self._item_feature = item_feature
        self._columns: dict[str, Array] = {}
        items = np.sort(self.ids(item_feature))
        twice = items[1:][items[1:] == items[:-1]]
        if len(twice):
            rows = int((items == twice[0]).sum())
            raise UserError(
                f"data.items: got {item_feature} {twice[0]} in {rows} rows, expected one row for each item"
            )

    @property
    def schema(self) -> DatasetSchema:
        """Returns what each batch holds."""
        return DatasetSchema(self._trained.features, self._trained.dense_names, ())

    @property
    def num_samples(self) -> int:
        """Returns the number of items, N."""
        return self.files.num_samples

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the features and dense columns that the files have."""
        return (*self.files.schema.feature_names, *self.files.schema.dense_names)

    def ids(self, feature: str) -> Array:
        """Returns the ids of a feature with one id in each row; they stay in memory.

        Shapes: uint64 [N].
        """
        if feature not in self._columns:
            self._columns[feature] = np.concatenate([batch.ids[feature].values for batch in self._blocks()])
        return self._columns[feature]

    def shares(self) -> ItemShares:
        """Returns each item's share in the weights of all.

        Raises UserError for files without weights, and if all are 0.
        """
        self.check_weights()
        weights = np.concatenate([np.asarray(batch.weight, np.float64) for batch in self._blocks()])
        if not weights.any():
            raise UserError("data.items: all weights are 0, expected how often training has each item")
        with np.errstate(divide="ignore"):
            log_q = np.log(weights / weights.sum()).astype(np.float32)
        keys = mix(self.ids(self._item_feature))
        order = np.argsort(keys)
        return ItemShares(keys[order], log_q[order])

    def check_weights(self) -> None:
        """Checks that there are weights.

        Raises UserError if not.
        """
        if not self.files.schema.has_weight:
            raise UserError(
                'data.items: the catalogue has no dataset /weight, but logq = "weights" needs it: how often '
                'training has each item; prepare the catalogue with it, or set logq = "counts"'
            )

    def read(self, begin: int, end: int) -> SampleBatch:
        """Returns the items [begin, end)."""
        found, count = self.files.read(begin, end), end - begin
        dense = np.full((count, len(self._trained.dense_names)), np.nan, np.float32)
        for i, name in enumerate(self.files.schema.dense_names):
            dense[:, self._trained.dense_names.index(name)] = found.dense[:, i]
        ids = {}
        for feature in self._trained.features:
            if feature.name in found.ids:
                ids[feature.name] = found.ids[feature.name]
            elif feature.multi:
                ids[feature.name] = no_ids(count, weighted=feature.weighted)
            else:
                ids[feature.name] = IdColumn(np.zeros(count, np.uint64))
        return SampleBatch(ids, dense, np.empty((count, 0), np.float32))

    def close(self) -> None:
        """Closes all files; a later read opens them again."""
        self.files.close()

    def _blocks(self) -> Iterator[SampleBatch]:
        for begin in range(0, self.num_samples, BLOCK):
            yield self.files.read(begin, min(begin + BLOCK, self.num_samples))


def no_ids(count: int, *, weighted: bool = False) -> IdColumn:
    """Returns a column of samples without ids."""
    weights = np.empty(0, np.float32) if weighted else None
    return IdColumn(np.empty(0, np.uint64), np.zeros(count + 1, np.uint32), weights)


class Drawing:
    """Draws items for samples, uniformly, with replacement: the columns of the features with `sampled`.

    What a sample gets is a function of the seed, the epoch and its position in that, and of the catalogue.
    Several features get columns of the same rows of the catalogue.
    """

    def __init__(self, config: Config, catalogue: Catalogue | None) -> None:
        """Takes the features from the configuration; without a catalogue there is nothing to draw from."""
        self._features = sampled_features(config)
        self._catalogue = catalogue
        self._seed = config.seed

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the features."""
        return tuple(self._features)

    def add(self, batch: SampleBatch, epoch: int, begin: int) -> SampleBatch:
        """Returns training samples, at positions from `begin` on, with what is drawn for them."""
        columns = {
            name: self._draw(batch.num_samples, epoch, begin, like, count)
            for name, (like, count) in self._features.items()
        }
        return _with_columns(batch, columns)

    def add_none(self, batch: SampleBatch, epoch: int = 0, begin: int = 0) -> SampleBatch:
        """Returns other samples, for which nothing is drawn, with columns without ids."""
        return _with_columns(batch, dict.fromkeys(self._features, no_ids(batch.num_samples)))

    def _draw(self, samples: int, epoch: int, begin: int, like: str, count: int) -> IdColumn:
        assert self._catalogue is not None, "checked with the configuration"
        sequence = np.random.SeedSequence(self._seed, spawn_key=(epoch, 0x5A))
        stream = np.uint64(sequence.generate_state(1, np.uint64)[0])
        positions = np.arange(begin, begin + samples).astype(np.uint64) * np.uint64(MOST_DRAWN)
        numbers: Array = (positions[:, None] + np.arange(count).astype(np.uint64)).reshape(-1)
        words = mix(mix(numbers) ^ stream)
        ids = self._catalogue.ids(like)
        values = ids[(words % np.uint64(len(ids))).astype(np.int64)]
        return IdColumn(values, np.arange(samples + 1, dtype=np.uint32) * np.uint32(count))


def _with_columns(batch: SampleBatch, columns: Mapping[str, IdColumn]) -> SampleBatch:
    ids = {**batch.ids, **columns}
    return SampleBatch(ids, batch.dense, batch.labels, batch.weight, batch.group, batch.time)


def _open_items(config: Config, trained: DatasetSchema) -> FileSource:
    """Opens the files of the catalogue; with `data.features` they may have more features, as data may."""
    if parquet := next(filter(is_parquet, matches(config.data.items)), None):
        raise UserError(
            f"data.items: got the Parquet file {parquet}, expected HDF5, since data.schema is that of the "
            "samples; make it with `persia-hpc preprocess table` and a schema of its own"
        )
    files = open_source(config.data.items)
    names = [name for name in files.schema.feature_names if name in trained.feature_names]
    if config.data.features is None or not names:
        return files
    return open_source(config.data.items, features=names)


def open_catalogue(config: Config, trained: DatasetSchema, whose: str) -> Catalogue:
    """Opens `data.items` and checks that it fits the training data, of the schema `trained`.

    whose: names that data in messages.
    Raises UserError for files that can't be used, or that don't fit.
    """
    files = _open_items(config, trained)
    path, schema, item_feature = files.encodings[0][0], files.schema, str(config.data.item_feature)
    wanted = {like: f"features.{name}.sampled" for name, (like, _) in sampled_features(config).items()}
    wanted[item_feature] = "data.item_feature"
    for like, key in wanted.items():
        for where, known in ((whose, trained), (path, schema)):
            if like not in known.feature_names:
                names = ", ".join(known.feature_names) or "none"
                raise UserError(f"{key}: got {like!r}, expected a feature that {where} has: {names}")
            if known.feature(like).multi:
                raise UserError(
                    f"{key}: {like!r} is multi-hot in {where}, expected a feature with one id in each row"
                )
    exclude = config.data.exclude_feature
    if exclude is not None and exclude not in trained.feature_names:
        raise UserError(
            f"data.exclude_feature: got {exclude!r}, expected a feature that {whose} has: "
            f"{', '.join(trained.feature_names)}"
        )
    check_encodings(files.encodings, whose, trained.encoding)
    for feature in schema.features:
        if feature.name in trained.feature_names and trained.feature(feature.name) != feature:
            raise UserError(
                f"{path}: got {feature.description} feature {feature.name!r}, but it is "
                f"{trained.feature(feature.name).description} in {whose}; prepare both alike"
            )
    unknown = {*schema.feature_names, *schema.dense_names} - {*trained.feature_names, *trained.dense_names}
    if unknown:
        problem = f"got the column {min(unknown)!r}, but {whose} has none of that name; leave it out here too"
        raise UserError(f"{path}: {problem}")
    catalogue = Catalogue(files, trained, item_feature)
    if logq_source(config) == "weights":
        catalogue.check_weights()
    return catalogue
