"""Measures reading cached files to shuffled batches in one thread, as an embedding worker reads them.

The samples are Criteo's shape: 26 one-hot ids (uint32 in HDF5, int64 in Parquet), 13 dense columns, one
label. `read` reads the same datasets whole into arrays that are there already: no shuffling, no batches, no
widening; of Parquet, polars reads the file to a frame. `memcpy` copies the bytes of the batches. Parquet is
decoded by polars' threads, one for each core unless POLARS_MAX_THREADS says less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from persia_hpc.config.types import DataConfig
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.names import COMPRESSIONS, default_compression, open_to_read
from persia_hpc.samples.reader import BatchReader
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.samples.writer import DatasetWriter

from .measure import Result, in_turns

SUMMARY = "HDF5 and Parquet files to shuffled batches"
EXAMPLES = "example: persia-hpc bench read --samples 4000000 --core 1"
FEATURES, DENSE = 26, 13
VOCABULARY = 1_000_000
PART = 65_536
PARQUET = {"parquet, snappy": "snappy", "parquet, zstd": "zstd"}  # the name of a case, for polars


Samples = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--samples", type=int, default=1_000_000, help="rows of the file (default: 1000000)")
    parser.add_argument("--batch", type=int, default=2048, help="samples of a batch (default: 2048)")
    parser.add_argument("--block-rows", type=int, default=DataConfig.block_rows, help="data.block_rows")
    parser.add_argument(
        "--buffer-blocks", type=int, default=DataConfig.buffer_blocks, help="data.buffer_blocks"
    )
    parser.add_argument(
        "--row-group", type=int, default=100_000, help="rows of Parquet's row groups (default: 100000)"
    )


def parts(num_samples: int) -> Iterator[Samples]:
    """Yields ids with Zipf(1.2) frequencies, normal dense columns and one label in four set."""
    generator = np.random.default_rng(1)
    for begin in range(0, num_samples, PART):
        size = min(PART, num_samples - begin)
        ids = {f"c{i}": generator.zipf(1.2, size).astype(np.uint64) % VOCABULARY for i in range(FEATURES)}
        dense = generator.normal(size=(size, DENSE)).astype(np.float32)
        yield ids, dense, (generator.random((size, 1)) < 0.25).astype(np.float32)


def write_file(path: Path, num_samples: int, compression: str) -> None:
    """Writes the samples as a dataset."""
    names = [f"c{i}" for i in range(FEATURES)]
    schema = DatasetSchema(
        tuple(FeatureSchema(name, False) for name in names), tuple(f"d{i}" for i in range(DENSE)), ("label",)
    )
    with DatasetWriter(
        path, schema, id_dtypes=dict.fromkeys(names, "uint32"), compression=compression
    ) as writer:
        for ids, dense, labels in parts(num_samples):
            writer.write(SampleBatch({name: IdColumn(values) for name, values in ids.items()}, dense, labels))


def write_parquet(path: Path, num_samples: int, compression: Any, row_group: int) -> Path:
    """Writes the samples as Parquet; returns the schema file, which is beside it."""
    import polars as pl

    frames = [
        pl.DataFrame(
            {
                **{name: values.astype(np.int64) for name, values in ids.items()},
                **{f"d{i}": dense[:, i] for i in range(DENSE)},
                "label": labels[:, 0].astype(np.int64),
            }
        )
        for ids, dense, labels in parts(num_samples)
    ]
    pl.concat(frames).write_parquet(path, compression=compression, row_group_size=row_group)
    schema = path.with_suffix(".toml")
    lines = ["[labels]", "label = {}", "[dense]", *(f"d{i} = {{}}" for i in range(DENSE))]
    schema.write_text("\n".join([*lines, "[ids]", *(f"c{i} = {{}}" for i in range(FEATURES))]) + "\n")
    return schema


def read_hdf5_whole(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Reads all datasets into `arrays`, which the first call makes."""
    with open_to_read(str(path)) as file:
        for dataset in [*file["ids"].values(), file["dense"], file["label"]]:
            assert isinstance(dataset, h5py.Dataset)
            if dataset.name not in arrays:
                arrays[dataset.name] = np.empty(dataset.shape, dataset.dtype)
            dataset.read_direct(arrays[dataset.name])


def read_parquet_whole(path: Path) -> None:
    """Reads all columns with polars."""
    import polars as pl

    pl.read_parquet(path, glob=False)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures reading per sample, shuffled and in order, for each compression that a file may have."""
    epochs = count()
    for compression in (*COMPRESSIONS, *PARQUET):
        if compression == "lz4" and default_compression() != "lz4":
            continue  # hdf5plugin isn't installed
        if compression in PARQUET and find_spec("polars") is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "feed"
            schema = None
            read_whole: Callable[[], None] = partial(read_hdf5_whole, path, {})
            if compression in PARQUET:
                kind = PARQUET[compression]
                schema = str(write_parquet(path, options.samples, kind, options.row_group))
                read_whole = partial(read_parquet_whole, path)
            else:
                write_file(path, options.samples, compression)
            for shuffle in (True, False):

                def read_batches(
                    path: Path = path, schema: str | None = schema, shuffle: bool = shuffle
                ) -> None:
                    # Anew, so that nothing is decompressed already.
                    source = open_source([str(path)], schema_file=schema)
                    reader = BatchReader(
                        source,
                        block_rows=options.block_rows,
                        buffer_blocks=options.buffer_blocks,
                        seed=1,
                        shuffle=shuffle,
                    )
                    epoch = next(epochs)
                    for begin in range(0, options.samples, options.batch):
                        reader.read(epoch, begin, min(begin + options.batch, options.samples))
                    source.close()

                num_bytes = options.samples * (8 * FEATURES + 4 * DENSE + 4)
                source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
                times = in_turns(
                    {
                        "ours": read_batches,
                        "read": read_whole,
                        "memcpy": partial(np.copyto, target, source),
                    },
                    options.repeats,
                )
                per_sample = {name: timing.scaled(1e9 / options.samples) for name, timing in times.items()}
                ours = per_sample.pop("ours")
                yield Result(
                    {"compression": compression, "shuffle": shuffle, "batch": options.batch},
                    "ns/sample",
                    ours,
                    per_sample,
                    notes={"M samples/s": round(1e3 / ours.median, 2)},
                )
