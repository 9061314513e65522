"""Makes samples with Zipf-distributed ids and labels from a planted model with a known best possible AUC.

Everything is a hash of (seed, row, feature): there are no tables, any number of rows takes constant memory,
and the rows don't depend on the number of files.
Shapes: B rows of a block, N ids of one feature, K dense features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, Outputs, make_directory, numbered
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.team import ONE_MEMBER, Team, once, together
from persia_hpc.preprocess.zipf import Zipf
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter

from .criteo import synthetic as criteo_syn
from .pieces import write_pieces
from .splitting import mix, random_bits, uniform

BLOCK_ROWS = 65_536
MAX_VIRTUAL_IDS = 10**13
# Kinds of random numbers: each has 2^40 streams, each feature 2^20 of them.
RANK, EXPAND, LENGTH, WEIGHT, DENSE, LABEL = range(6)
SOURCE = "synthetic, planted model"
DEFAULT_VOCABULARY = (1_000_000,)


def _stream(kind: int, index: int = 0) -> int:
    return (kind << 40) | (index << 20)


def _unit(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scales uniform numbers to mean 0 and variance 1."""
    scaled: npt.NDArray[np.float64] = (draws - 0.5) * np.sqrt(12.0)
    return scaled


@dataclass(frozen=True)
class SyntheticOptions:
    """Holds the options of `persia-hpc preprocess synthetic`, which the command's help explains.

    vocabulary: one size for all features or one for each
    new_ids: None means 1, or what the preset says
    """

    out: Path
    rows: int = 1_000_000
    valid_rows: int = 0
    test_rows: int = 100_000
    features: int = 26
    vocabulary: tuple[int, ...] = DEFAULT_VOCABULARY
    exponent: float = 1.2
    virtual_ids: int | None = None
    new_ids: float | None = None
    preset: str | None = None
    multi_features: int = 0
    max_ids: int = 10
    dense: int = 13
    scale: float = 2.0
    bias: float = -1.0
    seed: int = 1
    shards: int = 1
    overwrite: bool = False

    def resolved(self) -> SyntheticOptions:
        """Returns the options with the preset's values filled in.

        Raises UserError if options that the preset sets were given other values.
        """
        if self.preset is None:
            return self
        preset = criteo_syn.PRESETS[self.preset]
        values: dict[str, tuple[Any, Any]] = {  # value, and the default that may stand for it
            "features": (criteo_syn.FEATURES, 26),
            "dense": (criteo_syn.DENSE, 13),
            "vocabulary": (criteo_syn.VOCABULARY, DEFAULT_VOCABULARY),
            "virtual_ids": (preset.virtual_ids, None),
        }
        for name, (value, default) in values.items():
            if getattr(self, name) not in (value, default):
                raise UserError(
                    f"--{name.replace('_', '-')}: got {getattr(self, name)}, expected none beside "
                    f"--preset {self.preset}, which sets it"
                )
        new_ids = criteo_syn.NEW_IDS if self.new_ids is None else self.new_ids
        changed: dict[str, Any] = {name: value for name, (value, _) in values.items()}
        return replace(self, new_ids=new_ids, **changed)

    def check(self) -> None:
        """Checks that the numbers describe a data set.

        Raises UserError for a number out of its range or without the option that it needs.
        """
        sizes = self.vocabulary
        for name, value, low, high in (
            ("--rows", self.rows, 1, 10**13),
            ("--valid-rows", self.valid_rows, 0, 10**13),
            ("--test-rows", self.test_rows, 0, 10**13),
            ("--features", self.features, 1, 10_000),
            ("--vocabulary", min(sizes), 1, MAX_VIRTUAL_IDS),
            ("--vocabulary", max(sizes), 1, MAX_VIRTUAL_IDS),
            ("--virtual-ids", self.virtual_ids or max(sizes), max(sizes), MAX_VIRTUAL_IDS),
            ("--new-ids", 1.0 if self.new_ids is None else self.new_ids, 0.0, 1.0),
            ("--exponent", self.exponent, 0.0, 10.0),
            ("--multi-features", self.multi_features, 0, self.features),
            ("--max-ids", self.max_ids, 1, 65_535),
            ("--dense", self.dense, 0, 10_000),
            ("--shards", self.shards, 1, min(10_000, self.rows)),
        ):
            if not low <= value <= high:
                raise UserError(f"{name}: got {value}, expected {low} to {high}")
        if len(sizes) not in (1, self.features):
            raise UserError(
                f"--vocabulary: got {len(sizes)} sizes, expected one or {self.features} (--features)"
            )
        if self.new_ids is not None and self.virtual_ids is None:
            raise UserError(f"--new-ids: got {self.new_ids} without --virtual-ids, expected both or none")


class Generator:
    """Draws samples from the planted model.

    logit = bias + scale · (Σ id weights + Σ dense weight · dense) / √(F + K)

    An id's weight is a hash of the id; a multi-hot feature adds Σ weights / √count.
    """

    def __init__(self, options: SyntheticOptions) -> None:
        options = options.resolved()
        options.check()
        self._options = options
        sizes = options.vocabulary
        self._sizes = sizes * options.features if len(sizes) == 1 else sizes
        samplers = {size: Zipf(options.exponent, size) for size in set(self._sizes)}
        self._samplers = [samplers[size] for size in self._sizes]
        self._dense_weights = _unit(
            uniform(np.arange(options.dense, dtype=np.uint64), options.seed, _stream(DENSE))
        )
        one_hot = options.features - options.multi_features
        width = len(str(options.features - 1))
        features = tuple(
            FeatureSchema(f"f{i:0{width}d}", multi=i >= one_hot) for i in range(options.features)
        )
        self.schema = DatasetSchema(features, tuple(f"d{k}" for k in range(options.dense)), ("click",))

    def block(self, begin: int, end: int) -> tuple[SampleBatch, npt.NDArray[np.float64]]:
        """Returns the samples of rows [begin, end) and their true logits.

        Shapes: logits [B] float64.
        """
        options = self._options
        rows = np.arange(begin, end, dtype=np.uint64)
        total = np.zeros(len(rows))
        ids: dict[str, IdColumn] = {}
        for index, feature in enumerate(self.schema.features):
            if feature.multi:
                draws = uniform(rows, options.seed, _stream(LENGTH, index))
                lengths = (draws * (options.max_ids + 1)).astype(np.int64)
                owner = np.repeat(np.arange(len(rows)), lengths)
                place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                counters = rows[owner] * np.uint64(options.max_ids) + place.astype(np.uint64)
                values = self._ids(index, counters)
                sums = np.bincount(owner, weights=self._weights(index, values), minlength=len(rows))
                total += sums / np.sqrt(np.maximum(lengths, 1))
                ids[feature.name] = IdColumn.from_lengths(values, lengths)
            else:
                values = self._ids(index, rows)
                total += self._weights(index, values)
                ids[feature.name] = IdColumn(values)
        dense = np.empty((len(rows), options.dense), np.float32)
        for k in range(options.dense):
            dense[:, k] = _unit(uniform(rows, options.seed, _stream(DENSE, k + 1)))
        total += dense.astype(np.float64) @ self._dense_weights
        logits = options.bias + options.scale * total / np.sqrt(options.features + options.dense)
        clicks = uniform(rows, options.seed, _stream(LABEL)) < 1.0 / (1.0 + np.exp(-logits))
        return SampleBatch(ids, dense, clicks.astype(np.float32)[:, None]), logits

    def _ids(self, index: int, counters: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        seed, virtual = self._options.seed, self._options.virtual_ids
        ids = self._samplers[index].draw(counters, seed, _stream(RANK, index)) - np.uint64(1)
        if virtual is None:
            return ids
        # Not copies of the id that was drawn: the few of a frequent one would soon all have been seen.
        spread = random_bits(counters, seed, _stream(EXPAND, index)) % np.uint64(virtual)
        share = self._options.new_ids
        if share is None:
            return spread
        return np.where(uniform(counters, seed, _stream(EXPAND, index) + 1) < share, spread, ids)

    def _weights(self, index: int, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        return _unit(uniform(mix(ids), self._options.seed, _stream(WEIGHT, index)))


def best_possible(generator: Generator, begin: int, end: int, team: Team = ONE_MEMBER) -> dict[str, float]:
    """Returns AUC and logloss of the true logits on rows [begin, end), which no model can beat but by luck.

    Collective over `team`; without a connection, each rank goes through all rows.
    Raises UserError or PersiaError as `together` does.
    """
    # A part alone has to go through all rows.
    rank, size = (team.rank, team.size) if team.connected else (0, 1)
    rows = end - begin
    mine = range(begin + rows * rank // size, begin + rows * (rank + 1) // size)

    def work() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        logits, labels = np.empty(len(mine)), np.empty(len(mine))
        with Progress("synthetic: best possible AUC", len(mine), shown=team.shows) as progress:
            for first in range(0, len(mine), BLOCK_ROWS):
                last = min(first + BLOCK_ROWS, len(mine))
                batch, logits[first:last] = generator.block(mine.start + first, mine.start + last)
                labels[first:last] = batch.labels[:, 0]
                progress.add(last - first)
        return logits, labels

    parts = team.gather(together(team, work))
    logits, labels = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    loss = np.logaddexp(0.0, logits) - labels * logits
    return {"bayes_auc": exact_auc(labels, logits), "bayes_logloss": float(loss.mean())}


def exact_auc(labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> float:
    """Returns the area under the ROC curve, with ties counted half; NaN if all labels are equal."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels.sum()
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def prepare(
    options: SyntheticOptions, team: Team = ONE_MEMBER
) -> tuple[list[FileReport], dict[str, float]] | None:
    """Writes the missing files; returns their reports and the best possible metrics, None if all existed.

    The rows don't depend on which rank makes them. Connected ranks get the same result.
    Collective over `team`.
    Raises UserError for bad options or files that are in the way, PersiaError for other failures.
    """
    generator, outputs, sizes = together(team, lambda: _plan(options))
    missing = once(team, outputs.missing)  # ranks may see different files
    if not missing and once(team, outputs.up_to_date):
        return None
    together(team, lambda: make_directory(options.out))
    ends = np.cumsum(sizes).tolist()
    # The seed alone decides the weight of an id.
    outputs.encode_together(team, lambda: {"dataset": "synthetic", "seed": options.seed})
    best = best_possible(generator, ends[-1] - options.test_rows, ends[-1], team) if options.test_rows else {}
    outputs.settings.update(best)

    def write(i: int, progress: Progress) -> list[FileReport]:
        path, clicks = outputs.directory / outputs.names[i], 0.0
        schema, settings = outputs.named(generator.schema), outputs.settings
        with DatasetWriter(path, schema, source=SOURCE, preprocessing=settings) as writer:
            for first in range(ends[i] - sizes[i], ends[i], BLOCK_ROWS):
                last = min(first + BLOCK_ROWS, ends[i])
                batch = generator.block(first, last)[0]
                writer.write(batch)
                clicks += float(batch.labels.sum(dtype=np.float64))
                progress.add(last - first)
        return [FileReport(path, sizes[i], clicks / sizes[i])]

    wanted = [i for i, name in enumerate(outputs.names) if name in missing]
    reports = write_pieces(team, outputs, sizes, wanted, write, "synthetic: writing", " rows")
    return None if reports is None else (reports, best)


def _plan(options: SyntheticOptions) -> tuple[Generator, Outputs, list[int]]:
    """Returns the files, and how many rows each of them has."""
    generator = Generator(options)
    names = numbered("train", options.shards, 3)
    bounds = [options.rows * shard // options.shards for shard in range(options.shards + 1)]
    sizes = [end - begin for begin, end in pairwise(bounds)]
    for name, rows in (("valid.h5", options.valid_rows), ("test.h5", options.test_rows)):
        if rows:
            names.append(name)
            sizes.append(rows)
    settings: dict[str, Any] = {"dataset": "synthetic", "options": _plain(options.resolved())}
    outputs = Outputs(options.out, names, settings, overwrite=options.overwrite)
    return generator, outputs, sizes


def _plain(options: SyntheticOptions) -> dict[str, Any]:
    skip = ("out", "overwrite")
    return {name: value for name, value in vars(options).items() if name not in skip}
