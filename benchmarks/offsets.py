"""Times the check that features of a sequence have equal offsets, beside one pass over the same data.

python benchmarks/offsets.py DIR [--rows 10000000] [--length 20]
    makes DIR/offsets.h5, or with --parquet DIR/offsets.parquet, if it isn't there
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter

NAMES = {"item": 1 << 20, "artist": 1 << 18, "action": 5, "gap": 40}  # features, and ids of each
PIECE = 1 << 16


def pieces(rows: int, length: int) -> Iterator[SampleBatch]:
    """Yields samples whose histories have from none to twice `length` events."""
    rng = np.random.default_rng(1)
    for begin in range(0, rows, PIECE):
        count = min(PIECE, rows - begin)
        lengths = rng.integers(0, 2 * length + 1, count)
        ids = {
            name: IdColumn.from_lengths(rng.integers(0, most, lengths.sum()).astype(np.uint64), lengths)
            for name, most in NAMES.items()
        }
        labels = rng.integers(0, 2, (count, 1)).astype(np.float32)
        yield SampleBatch(ids, np.zeros((count, 0), np.float32), labels)


def write_hdf5(path: Path, rows: int, length: int) -> None:
    """Writes the samples as `preprocess` does."""
    schema = DatasetSchema(tuple(FeatureSchema(name, multi=True) for name in NAMES))
    with DatasetWriter(path, schema, id_dtypes=dict.fromkeys(NAMES, "uint32")) as writer:
        for batch in pieces(rows, length):
            writer.write(batch)


def write_parquet(path: Path, rows: int, length: int) -> None:
    """Writes the samples as lists, in row groups of `PIECE`."""
    frames = []
    for batch in pieces(rows, length):
        lists = {
            name: pl.DataFrame(
                {"row": np.repeat(np.arange(batch.num_samples), np.diff(c.offsets)), name: c.values}
            )
            .with_columns(pl.col(name).cast(pl.UInt32))
            .group_by("row")
            .agg(name)
            for name, c in batch.ids.items()
            if c.offsets is not None
        }
        frame = pl.DataFrame({"row": np.arange(batch.num_samples), "label": batch.labels[:, 0]})
        for each in lists.values():
            frame = frame.join(each, on="row", how="left", maintain_order="left")
        frames.append(frame.drop("row"))
    pl.concat(frames).write_parquet(path, row_group_size=PIECE)
    ids = "".join(f"{name} = {{}}\n" for name in NAMES)
    path.with_suffix(".toml").write_text(f"[labels.label]\n[ids]\n{ids}")


def seconds(action: Callable[[], object]) -> str:
    """Returns how long an action takes, by the clock and of processors."""
    begin, used = time.perf_counter(), time.process_time()
    action()
    return f"{time.perf_counter() - begin:.2f} s, {time.process_time() - used:.2f} s of processors"


def main() -> None:
    """Measures three times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--parquet", action="store_true")
    options = parser.parse_args()
    path = options.folder / ("offsets.parquet" if options.parquet else "offsets.h5")
    if not path.exists():
        (write_parquet if options.parquet else write_hdf5)(path, options.rows, options.length)
    schema = str(path.with_suffix(".toml")) if options.parquet else None
    source = open_source([str(path)], sequences={"history": list(NAMES)}, schema_file=schema)
    print(f"{path}: {source.num_samples:,} rows, {path.stat().st_size / 1e6:,.0f} MB")

    def read_all() -> None:
        for begin in range(0, source.num_samples, PIECE):
            source.read(begin, min(begin + PIECE, source.num_samples))

    for _ in range(3):
        print(f"check: {seconds(source.check_sequences)}; one pass over all data: {seconds(read_all)}")


if __name__ == "__main__":
    main()
