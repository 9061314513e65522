"""Prepares Criteo display advertising (Kaggle layout): label, 13 integers I1..I13, 26 hex ids C1..C26.

Dense values are log(1 + max(x, 0)), missing ones 0. Ids are the 32-bit values, missing ones 2^32, and those
rarer than --min-count 2^32 + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.errors import UserError
from persia_hpc.preprocess.bad_lines import BadLines
from persia_hpc.preprocess.lines import Piece, expand_files
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity, numbered
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.splitting import OrderSplit, boundaries, check_fractions
from persia_hpc.preprocess.team import ONE_MEMBER
from persia_hpc.samples.batch import SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

from .ids import (
    DENSE_RULE,
    MISSING_ID,
    RARE_ID,
    Counters,
    count_ids,
    encoding_of,
    frequent_ids,
    given_ids,
    without_rare_ids,
)
from .lines import DENSE, IDS, read_rows

SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in IDS), DENSE, ("click",))
SOURCE = "Criteo display advertising, Kaggle layout"


@dataclass(frozen=True)
class CriteoOptions:
    """Holds the options of `persia-hpc preprocess criteo`.

    train_fraction, valid_fraction: parts of the rows in the files' order; the rest is the test
    shard_bytes: makes a file for about this many bytes of input instead (parallel.py)
    test_shards: number of these files, the last ones, that are the test
    max_bad_lines: the most lines of another layout that are left out
    encoding: what other files have been prepared with: encoding.json or the folder that holds it
    """

    out: Path
    input: tuple[str, ...]
    train_fraction: float = 0.9
    valid_fraction: float = 0.0
    min_count: int = 1
    rows: int | None = None
    shards: int = 1
    overwrite: bool = False
    shard_bytes: int | None = None
    test_shards: int = 0
    max_bad_lines: int = 0
    encoding: Path | None = None


def _batches(bad_lines: BadLines, max_rows: int | None, title: str) -> Iterator[SampleBatch]:
    """Yields the first `max_rows` samples of all pieces (None: all), as `read_rows` does."""
    left = max_rows
    with Progress(title, sum(p.num_bytes for p in bad_lines.pieces), unit=" bytes") as progress:
        for piece in range(len(bad_lines.pieces)):
            for batch in read_rows(bad_lines, piece, progress, left):
                yield batch
                left = None if left is None else left - batch.num_samples
            if left == 0:
                return


def prepare(options: CriteoOptions) -> list[FileReport | str] | None:
    """Writes the files on one process; returns what to print at the end, None when they were up to date.

    Raises UserError for bad options or input, or if other files are in the way.
    """
    fractions = _fractions(options)
    for flag, value in (
        ("--min-count", options.min_count),
        ("--shards", options.shards),
        ("--rows", options.rows),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag}: got {value}, expected 1 or more")
    files = expand_files(options.input)
    names = numbered("train", options.shards, 3)
    names += [f"{split}.h5" for split in fractions if split != "train"]
    settings: dict[str, Any] = {
        "dataset": "criteo",
        "inputs": input_identity(files),
        "options": {
            "train_fraction": options.train_fraction,
            "valid_fraction": options.valid_fraction,
            "min_count": options.min_count,
            "rows": options.rows,
            "shards": options.shards,
        },
        "dense": DENSE_RULE,
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
    }
    given, frequent = None, Counters()
    if options.encoding is not None:
        given, frequent = given_ids(options.encoding, options.min_count)
        settings["encoding"] = given["digest"]
    outputs = Outputs(options.out, names, settings, overwrite=options.overwrite)
    bad_lines = BadLines([Piece(path) for path in files], options.max_bad_lines)
    everything = range(len(files))
    if outputs.up_to_date():
        bad_lines.restore(everything, outputs.stored(names[0]).get("lines"))
        bad_lines.check()
        return None
    bounds = np.zeros(0, np.int64)
    train_rows = options.rows
    if len(names) > 1:
        total = sum(b.num_samples for b in _batches(bad_lines, options.rows, "criteo: counting rows"))
        bounds = boundaries(total, fractions)
        train_rows = int(bounds[0]) if len(bounds) else total
        shard_bounds = np.arange(1, options.shards) * train_rows // options.shards
        bounds = np.concatenate([shard_bounds, bounds]).astype(np.int64)
    split = OrderSplit(bounds)
    if given is None and options.min_count > 1:
        counters = count_ids(_batches(bad_lines, train_rows, "criteo: counting ids"))
        frequent = frequent_ids(counters, options.min_count, ONE_MEMBER)
    outputs.encode(given or encoding_of(options.min_count, frequent))
    # Ids need 33 bits; the zero bytes of 64-bit numbers cost nothing after shuffling and compression.
    with outputs.write(SCHEMA, source=SOURCE) as writer:
        first_row = 0
        for whole in _batches(bad_lines, options.rows, "criteo: writing"):
            batch = without_rare_ids(whole, frequent)
            parts = split.parts(first_row, batch.num_samples)
            # Consecutive parts: slices instead of copies.
            for part in range(int(parts[0]), int(parts[-1]) + 1):
                begin, end = np.searchsorted(parts, [part, part + 1])
                writer.write(names[part], batch.slice(int(begin), int(end)))
            first_row += batch.num_samples
        outputs.settings["lines"] = bad_lines.setting(everything)
    return [*writer.report, *bad_lines.report()]


def _fractions(options: CriteoOptions) -> dict[str, float]:
    test = 1.0 - options.train_fraction - options.valid_fraction
    # 1 - 0.8 - 0.2 isn't quite 0 in floating point.
    parts = {
        "train": options.train_fraction,
        "valid": options.valid_fraction,
        "test": 0.0 if abs(test) < 1e-9 else test,
    }
    return check_fractions(parts, "--train-fraction and --valid-fraction")
