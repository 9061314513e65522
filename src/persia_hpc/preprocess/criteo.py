"""Criteo display advertising (Kaggle layout): label, 13 integers I1..I13, 26 hexadecimal ids C1..C26.

Dense: log(1 + max(x, 0)), missing 0. Ids: the 32-bit value; missing 2^32; rarer than --min-count 2^32 + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from persia_hpc.errors import UserError
from persia_hpc.preprocess.frames import Frame, parse
from persia_hpc.preprocess.ids import IdCounts, IdFilter
from persia_hpc.preprocess.lines import TextBlock, expand_files, read_blocks
from persia_hpc.preprocess.outputs import FileReport, Outputs, input_identity
from persia_hpc.preprocess.progress import Progress
from persia_hpc.preprocess.splits import OrderSplit, boundaries, check_fractions
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

DENSE = tuple(f"I{i}" for i in range(1, 14))
IDS = tuple(f"C{i}" for i in range(1, 27))
COLUMNS: dict[str, type[pl.DataType]] = {
    "label": pl.Int64,
    **dict.fromkeys(DENSE, pl.Int64),
    **dict.fromkeys(IDS, pl.String),
}
SCHEMA = DatasetSchema(tuple(FeatureSchema(name) for name in IDS), DENSE, ("click",))
MISSING_ID = 1 << 32
RARE_ID = MISSING_ID + 1
SOURCE = "Criteo display advertising, Kaggle layout"


@dataclass(frozen=True)
class CriteoOptions:
    """`train_fraction` of the rows, then `valid_fraction`, the rest is the test, in the files' order.

    With `shard_bytes` (criteo_shards.py) instead a file for about so many bytes of input, the last
    `test_shards` of them the test.
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


def decode(block: TextBlock) -> tuple[Frame, SampleBatch]:
    """The block's lines as samples; `UserError` with the line number for what isn't of the layout."""
    source = parse(block, COLUMNS, "\t")
    frame = source.frame
    labels = frame["label"].fill_null(-1).to_numpy()
    source.refuse((labels != 0) & (labels != 1), "label", "0 or 1")
    numbers = frame.select(pl.col(DENSE).fill_null(0).clip(lower_bound=0).cast(pl.Float32)).to_numpy()
    dense = np.log1p(np.ascontiguousarray(numbers))
    hexadecimal = pl.col(IDS).str.to_integer(base=16, dtype=pl.UInt32, strict=False)
    values = frame.select(hexadecimal)
    _refuse_ids(source, values)
    wide = values.select(pl.all().cast(pl.UInt64).fill_null(MISSING_ID))
    ids = {name: IdColumn(np.ascontiguousarray(wide[name].to_numpy())) for name in IDS}
    return source, SampleBatch(ids, dense, labels.astype(np.float32)[:, None])


def _refuse_ids(source: Frame, values: pl.DataFrame) -> None:
    for name in IDS:
        if values[name].null_count() != source.frame[name].null_count():
            bad = (values[name].is_null() & source.frame[name].is_not_null()).to_numpy()
            source.refuse(bad, name, "a 32-bit hexadecimal number or nothing")


def _blocks(files: list[Path], limit: int | None) -> Iterator[tuple[TextBlock, int]]:
    """The blocks of all files with the number of rows to use of each, at most `limit` rows in all."""
    left = limit
    for path in files:
        for block in read_blocks(path):
            rows = block.num_rows if left is None else min(block.num_rows, left)
            yield block, rows
            if left is not None:
                left -= rows
                if left == 0:
                    return


def prepare(options: CriteoOptions) -> list[FileReport] | None:
    """Write the files; None when they were up to date."""
    fractions = _fractions(options)
    for flag, value in (
        ("--min-count", options.min_count),
        ("--shards", options.shards),
        ("--rows", options.rows),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag}: got {value}, expected 1 or more")
    files = expand_files(options.input)
    names = [f"train-{shard:03d}.h5" for shard in range(options.shards)]
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
        "dense": "log(1 + max(x, 0)), missing 0",
        "missing_id": MISSING_ID,
        "rare_id": RARE_ID,
    }
    outputs = Outputs(options.out, names, settings, overwrite=options.overwrite)
    if outputs.up_to_date():
        return None
    with Progress("criteo: counting rows") as progress:
        total = _count(files, options.rows, progress)
    bounds = boundaries(total, fractions)
    train_rows = int(bounds[0]) if len(bounds) else total
    shard_bounds = np.arange(1, options.shards) * train_rows // options.shards
    split = OrderSplit(np.concatenate([shard_bounds, bounds]).astype(np.int64))
    filters = _filters(files, train_rows, options.min_count) if options.min_count > 1 else {}
    # Ids need 33 bits; the zero bytes of 64-bit numbers cost nothing after shuffling and compression.
    with outputs.write(SCHEMA, source=SOURCE) as writer, Progress("criteo: writing", total) as progress:
        first_row = 0
        for block, rows in _blocks(files, options.rows):
            batch = decode(block)[1].slice(0, rows)
            batch = filtered(batch, filters)
            parts = split.parts(first_row, rows)
            # Consecutive parts: slices instead of copies.
            for part in range(int(parts[0]), int(parts[-1]) + 1):
                begin, end = np.searchsorted(parts, [part, part + 1])
                writer.write(names[part], batch.slice(int(begin), int(end)))
            first_row += rows
            progress.add(rows)
    return writer.report


def _fractions(options: CriteoOptions) -> dict[str, float]:
    test = 1.0 - options.train_fraction - options.valid_fraction
    # 1 - 0.8 - 0.2 isn't quite 0 in floating point.
    parts = {
        "train": options.train_fraction,
        "valid": options.valid_fraction,
        "test": 0.0 if abs(test) < 1e-9 else test,
    }
    return check_fractions(parts, "--train-fraction and --valid-fraction")


def _count(files: list[Path], limit: int | None, progress: Progress) -> int:
    total = 0
    for _, rows in _blocks(files, limit):
        total += rows
        progress.add(rows)
    return total


def _filters(files: list[Path], train_rows: int, min_count: int) -> dict[str, IdFilter]:
    counts = {name: IdCounts() for name in IDS}
    with Progress("criteo: counting ids", train_rows) as progress:
        for block, rows in _blocks(files, train_rows):
            batch = decode(block)[1]
            for name, column in batch.ids.items():
                counts[name].add(column.values[:rows])
            progress.add(rows)
    known: dict[str, npt.NDArray[np.uint64]] = {
        name: count.frame(min_count)["id"].to_numpy() for name, count in counts.items()
    }
    return {name: IdFilter(ids, other=RARE_ID, never_other=[MISSING_ID]) for name, ids in known.items()}


def filtered(batch: SampleBatch, filters: dict[str, IdFilter]) -> SampleBatch:
    """The batch with rare ids replaced."""
    if not filters:
        return batch
    ids = {name: IdColumn(filters[name](column.values)) for name, column in batch.ids.items()}
    return SampleBatch(ids, batch.dense, batch.labels)
