"""Measures reading cached HDF5 files to shuffled batches in one thread, as an embedding worker reads them.

The samples are Criteo's shape: 26 one-hot ids (uint32 in the file), 13 dense columns, one label. `read` reads
the same datasets whole into arrays that are there already: no shuffling, no batches, no widening. `memcpy`
copies the bytes of the batches.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

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

SUMMARY = "HDF5 files to shuffled batches"
EXAMPLES = "example: persia-hpc bench read --samples 4000000 --core 1"
FEATURES, DENSE = 26, 13
VOCABULARY = 1_000_000
PART = 65_536


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--samples", type=int, default=1_000_000, help="rows of the file (default: 1000000)")
    parser.add_argument("--batch", type=int, default=2048, help="samples of a batch (default: 2048)")
    parser.add_argument("--block-rows", type=int, default=DataConfig.block_rows, help="data.block_rows")
    parser.add_argument(
        "--buffer-blocks", type=int, default=DataConfig.buffer_blocks, help="data.buffer_blocks"
    )


def write_file(path: Path, num_samples: int, compression: str) -> None:
    """Writes ids with Zipf(1.2) frequencies, normal dense columns and one label in four set."""
    names = [f"c{i}" for i in range(FEATURES)]
    schema = DatasetSchema(
        tuple(FeatureSchema(name, False) for name in names), tuple(f"d{i}" for i in range(DENSE)), ("label",)
    )
    generator = np.random.default_rng(1)
    with DatasetWriter(
        path, schema, id_dtypes=dict.fromkeys(names, "uint32"), compression=compression
    ) as writer:
        for begin in range(0, num_samples, PART):
            size = min(PART, num_samples - begin)
            ids = {n: IdColumn(generator.zipf(1.2, size).astype(np.uint64) % VOCABULARY) for n in names}
            dense = generator.normal(size=(size, DENSE)).astype(np.float32)
            labels = (generator.random((size, 1)) < 0.25).astype(np.float32)
            writer.write(SampleBatch(ids, dense, labels))


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures reading per sample, shuffled and in order, for each compression that a file may have."""
    epochs = count()
    for compression in COMPRESSIONS:
        if compression == "lz4" and default_compression() != "lz4":
            continue  # hdf5plugin isn't installed
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "feed.h5"
            write_file(path, options.samples, compression)
            for shuffle in (True, False):

                def read_batches(path: Path = path, shuffle: bool = shuffle) -> None:
                    source = open_source([str(path)])  # anew, so that nothing is decompressed already
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

                arrays: dict[str, np.ndarray] = {}

                def read_whole(path: Path = path, arrays: dict[str, np.ndarray] = arrays) -> None:
                    with open_to_read(str(path)) as file:
                        for dataset in [*file["ids"].values(), file["dense"], file["label"]]:
                            assert isinstance(dataset, h5py.Dataset)
                            if dataset.name not in arrays:
                                arrays[dataset.name] = np.empty(dataset.shape, dataset.dtype)
                            dataset.read_direct(arrays[dataset.name])

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
