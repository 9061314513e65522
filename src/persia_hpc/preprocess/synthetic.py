"""Samples with Zipf-distributed ids and labels from a planted model, so that the best possible AUC is known.

Everything is a hash of (seed, row, feature): no tables, any number of rows in constant memory, and the same
rows whatever the number of files. Shapes: B rows of a block, N ids of one feature, K dense features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from persia_hpc.errors import UserError
from persia_hpc.preprocess.outputs import FileReport, Outputs
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.splits import mix, random_bits, uniform
from persia_hpc.preprocess.zipf import Zipf
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

BLOCK_ROWS = 65_536
MAX_VIRTUAL_IDS = 10**13
# Kinds of random numbers: each has 2^40 streams, each feature 2^20 of them.
RANK, EXPAND, LENGTH, WEIGHT, DENSE, LABEL = range(6)


def _stream(kind: int, index: int = 0) -> int:
    return (kind << 40) | (index << 20)


def _unit(draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Uniform numbers with mean 0 and variance 1."""
    scaled: npt.NDArray[np.float64] = (draws - 0.5) * np.sqrt(12.0)
    return scaled


@dataclass(frozen=True)
class SyntheticOptions:
    """See the command's help. `vocabulary`: one size for all features or one each."""

    out: Path
    rows: int = 1_000_000
    valid_rows: int = 0
    test_rows: int = 100_000
    features: int = 26
    vocabulary: tuple[int, ...] = (1_000_000,)
    exponent: float = 1.2
    virtual_ids: int | None = None
    multi_features: int = 0
    max_ids: int = 10
    dense: int = 13
    scale: float = 2.0
    bias: float = -1.0
    seed: int = 1
    shards: int = 1
    overwrite: bool = False

    def check(self) -> None:
        """Raise `UserError` for numbers that make no data set."""
        sizes = self.vocabulary
        for name, value, low, high in (
            ("--rows", self.rows, 1, 10**13),
            ("--valid-rows", self.valid_rows, 0, 10**13),
            ("--test-rows", self.test_rows, 0, 10**13),
            ("--features", self.features, 1, 10_000),
            ("--vocabulary", min(sizes), 1, MAX_VIRTUAL_IDS),
            ("--vocabulary", max(sizes), 1, MAX_VIRTUAL_IDS),
            ("--virtual-ids", self.virtual_ids or max(sizes), max(sizes), MAX_VIRTUAL_IDS),
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


class Generator:
    """The planted model: logit = bias + scale · (Σ id weights + Σ dense weight · dense) / √(F + K).

    An id's weight is a hash of it; a multi-hot feature adds Σ weights / √count.
    """

    def __init__(self, options: SyntheticOptions) -> None:
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
        """Rows [begin, end) and their true logits [B]."""
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
        copies = np.uint64(virtual // self._sizes[index])
        return ids * copies + random_bits(counters, seed, _stream(EXPAND, index)) % copies

    def _weights(self, index: int, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        return _unit(uniform(mix(ids), self._options.seed, _stream(WEIGHT, index)))


def best_possible(generator: Generator, begin: int, end: int) -> dict[str, float]:
    """AUC and logloss of the true logits on rows [begin, end): no model can do better but by luck."""
    logits, labels = np.empty(end - begin), np.empty(end - begin)
    with Progress("synthetic: best possible AUC", end - begin) as progress:
        for first in range(begin, end, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, end)
            batch, logits[first - begin : last - begin] = generator.block(first, last)
            labels[first - begin : last - begin] = batch.labels[:, 0]
            progress.add(last - first)
    loss = np.logaddexp(0.0, logits) - labels * logits
    return {"bayes_auc": exact_auc(labels, logits), "bayes_logloss": float(loss.mean())}


def exact_auc(labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve, ties counted half; NaN if all labels are equal."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels.sum()
    negative = len(labels) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def prepare(options: SyntheticOptions) -> tuple[list[FileReport], dict[str, float]] | None:
    """Write the files; their reports and the best possible metrics. None when they were up to date."""
    generator = Generator(options)
    names = [f"train-{shard:03d}.h5" for shard in range(options.shards)]
    sizes = [
        options.rows * (s + 1) // options.shards - options.rows * s // options.shards
        for s in range(len(names))
    ]
    for name, rows in (("valid.h5", options.valid_rows), ("test.h5", options.test_rows)):
        if rows:
            names.append(name)
            sizes.append(rows)
    settings: dict[str, Any] = {"dataset": "synthetic", "options": _plain(options)}
    outputs = Outputs(options.out, names, settings, overwrite=options.overwrite)
    if outputs.up_to_date():
        return None
    ends = np.cumsum(sizes).tolist()
    best = best_possible(generator, ends[-1] - options.test_rows, ends[-1]) if options.test_rows else {}
    outputs.settings.update(best)
    with (
        outputs.write(generator.schema, source="synthetic, planted model") as writer,
        Progress("synthetic: writing", ends[-1]) as progress,
    ):
        for name, end, size in zip(names, ends, sizes, strict=True):
            for first in range(end - size, end, BLOCK_ROWS):
                last = min(first + BLOCK_ROWS, end)
                writer.write(name, generator.block(first, last)[0])
                progress.add(last - first)
    return writer.report, best


def _plain(options: SyntheticOptions) -> dict[str, Any]:
    skip = ("out", "overwrite")
    return {name: value for name, value in vars(options).items() if name not in skip}
