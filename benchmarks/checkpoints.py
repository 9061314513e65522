"""What checkpoints cost: files against plain sequential I/O of the same bytes, and training beside writing.

    python benchmarks/checkpoints.py io [--rows 10000000] [--dim 16]
    python benchmarks/checkpoints.py train [--rows 6000000]

`io`: one server's table, written and loaded by the code that jobs use, beside writing (with fsync) and
reading (not from the page cache) a plain file of as many bytes, in turns. `train`: a job of one server, one
worker and one trainer whose tables hold `rows` rows from the start. Checkpoints are written one after the
other, with as much time between them as writing takes. Steps a second while one is written against those in between,
and for how long training stood still.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import mix
from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config, load_config
from persia_hpc.layout import make_layout
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema

SCHEMA = DatasetSchema((FeatureSchema("item", False),))
BLOCK = 8 << 20


def config(tables: dict[str, Any] | None = None) -> Config:
    return load_config({"data": {"train": "none"}, "model": {"class": "dlrm"}, "tables": tables or {}})


def make_server(rows: int, dim: int) -> ParameterServer:
    """An empty server with room for so many rows in one table."""
    optimizer = {"name": "rowwise_adagrad", "lr": 0.05}
    table = {"dim": dim, "capacity": int(rows * (4 * dim + 4 + 24) * 1.05), "optimizer": optimizer}
    settings = config({"default": table})
    return ParameterServer(settings, make_layout(settings, SCHEMA))


def fill(server: ParameterServer, rows: int) -> None:
    """Rows of ids 0, 1, …"""
    table = server.tables[0]
    assert table is not None
    for begin in range(0, rows, 1 << 18):
        keys = np.sort(mix(np.arange(begin, min(begin + (1 << 18), rows), dtype=np.uint64)))
        out = np.empty((len(keys), table.dim), np.float32)
        table.pull(keys, 1, out, np.empty(len(keys), np.uint32))
    table.evict(1)


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def forget(path: Path) -> None:
    """Drops a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_plain(path: Path, num_bytes: int) -> None:
    block = np.random.default_rng(0).bytes(BLOCK)
    with path.open("wb") as file:
        for _ in range(num_bytes // BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def read_plain(path: Path) -> None:
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def measure_io(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="persia-io-", dir=options.folder))
    try:
        server = make_server(options.rows, options.dim)
        fill(server, options.rows)
        turns = [one_turn(folder, server, options) for _ in range(options.repeat)]
    finally:
        shutil.rmtree(folder)
    size = turns[0]["bytes"]
    print(f"{options.rows:,} rows of dim {options.dim}, {size / 1e9:.2f} GB, {options.repeat} times in turns")
    for ours, limit in (("write", "plain write"), ("load", "plain read")):
        ratio = statistics.median(turn[limit] / turn[ours] for turn in turns)
        rates = [size / 1e9 / statistics.median(turn[name] for turn in turns) for name in (ours, limit)]
        print(f"{ours:6} {rates[0]:6.2f} GB/s   {limit:11} {rates[1]:6.2f} GB/s   {ratio:.0%} of it")


def one_turn(folder: Path, server: ParameterServer, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each."""
    directory, plain = files.begin(folder, 1), folder / "plain"
    shard = directory / files.shard_name(0)
    turn = {"write": seconds(lambda: ShardWriter(server, shard).write())}
    size = shard.stat().st_size
    turn["plain write"] = seconds(lambda: write_plain(plain, size))
    final = files.finish(
        directory, step=1, config=config(), schema=SCHEMA, num_samples={}, versions={}, base=None
    )
    forget(plain)
    forget(final / files.shard_name(0))
    fresh = make_server(options.rows, options.dim)
    turn["load"] = seconds(lambda: load_rows(final, fresh))
    turn["plain read"] = seconds(lambda: read_plain(plain))
    return {**turn, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    io = commands.add_parser("io")
    io.add_argument("--rows", type=int, default=10_000_000)
    io.add_argument("--dim", type=int, default=16)
    io.add_argument("--repeat", type=int, default=3)
    io.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    io.set_defaults(run=measure_io)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
