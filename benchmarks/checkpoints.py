"""What checkpoints cost: files against plain sequential I/O of the same bytes, and training beside writing.

    python benchmarks/checkpoints.py io [--rows 10000000] [--dim 16]
    python benchmarks/checkpoints.py train [--rows 6000000]

`io`: one server's table, written and loaded by the code that jobs use, beside writing (with fsync) and
reading (not from the page cache) a plain file of as many bytes, in turns. `train`: a job of one server, one
worker and one trainer whose tables hold `rows` rows from the start. Checkpoints are written one after the
other, with as much time between them as writing takes. Steps a second while one is written against those in
between, and for how long training stood still.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import persia_hpc as ph
from persia_hpc._native import mix
from persia_hpc.bench.train_jobs import prepare_data, w0_settings
from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.names import DENSE, shard_name
from persia_hpc.checkpoint.rows import load_rows
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import Config, load_config, to_toml
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.table_layout import make_layout

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
    directory, plain = files.begin_checkpoint(folder, 1), folder / "plain"
    shard = directory / shard_name(0)
    turn = {"write": seconds(lambda: ShardWriter(server, shard).write())}
    size = shard.stat().st_size
    turn["plain write"] = seconds(lambda: write_plain(plain, size))
    final = files.finish_checkpoint(
        directory, step=1, config=config(), schema=SCHEMA, num_samples={}, versions={}, base=None
    )
    forget(plain)
    forget(final / shard_name(0))
    fresh = make_server(options.rows, options.dim)
    turn["load"] = seconds(lambda: load_rows(final, fresh))
    turn["plain read"] = seconds(lambda: read_plain(plain))
    return {**turn, "bytes": size}


def write_start(folder: Path, rows: int) -> Path:
    """A checkpoint of W0's tables with ids 0, 1, … in each, to begin a run with."""
    schema = open_source([str(folder / "train-000.h5")]).schema
    settings = load_config(w0_settings(folder / "train-000.h5", 2048, 2048))
    layout = make_layout(settings, schema)
    server = ParameterServer(settings, layout)
    for table in server.tables:
        assert table is not None
        keys = np.sort(mix(np.arange(rows // len(server.tables), dtype=np.uint64)))
        table.pull(keys, 1, np.empty((len(keys), table.dim), np.float32), np.empty(len(keys), np.uint32))
    run = folder / "start"
    shutil.rmtree(run, ignore_errors=True)
    directory = files.begin_checkpoint(run, 1)
    ShardWriter(server, directory / shard_name(0)).write()
    dense = {"step": 1, "samples": 0, "model": {}, "optimizer": {}, "random": []}
    torch.save(dense, directory / DENSE)  # a checkpoint has one, though only the rows are wanted
    files.finish_part(directory / DENSE)
    facts: dict[str, Any] = {
        "config": settings,
        "schema": schema,
        "num_samples": {"train": 0},
        "versions": {},
    }
    return files.finish_checkpoint(directory, step=1, base=None, **facts)


def measure_training(options: argparse.Namespace) -> None:
    folder: Path = options.folder or Path("build/checkpoints")
    prepare_data(folder, 1_000_000)
    start = write_start(folder, options.rows)
    size = sum(path.stat().st_size for path in start.iterdir())
    settings = w0_settings(folder / "train-000.h5", options.batch, 1)
    settings["train"].update(max_steps=None, save=True)
    settings["checkpoint"] = {
        "init_from": str(start),
        "init_parts": "embeddings",
        "every_seconds": options.every_seconds,
    }
    settings["run_dir"] = str(folder / "run")
    shutil.rmtree(folder / "run", ignore_errors=True)
    path = folder / "job.toml"
    path.write_text(to_toml(load_config(settings).resolved()))
    command = ["mpiexec", "-n", "3", sys.executable, "-m", "mpi4py", __file__, "job", str(path)]
    more = ["--seconds", str(options.seconds), *["--spare"] * options.spare]
    subprocess.run([*command, *more], check=True)
    found = json.loads((folder / "run" / "pace.json").read_text())
    writing, free = (found[name]["steps"] / found[name]["seconds"] for name in ("writing", "free"))
    count = found["checkpoints"]
    print(
        f"{options.rows:,} rows of dim 16, {size / 2**30:.2f} GiB, batch {options.batch}, {count} checkpoints"
    )
    print(f"{free:.1f} steps/s, {writing:.1f} while one is written ({writing / free:.0%})")
    gap = max(0.0, statistics.median(found["gaps"]) - 1 / free) * 1e3
    mark = found["paused_seconds"] / count * 1e3
    print(f"stopped for {gap:.0f} ms, drain and refill included, {gap / (size / 2**30):.0f} ms per GiB")
    print(f"of that for marks {mark:.1f} ms; written in {found['write_seconds'] / count:.2f} s each")


class Pace(ph.Callback):
    """Steps and seconds while a checkpoint is written, and while none is."""

    def __init__(self, seconds: float, path: Path) -> None:
        self.seconds, self.path = seconds, path
        self.found = {name: {"steps": 0, "seconds": 0.0} for name in ("writing", "free")}
        self.gaps: list[float] = []  # the step after which a checkpoint had begun
        self.last = self.began = 0.0
        self.busy = False

    def on_step(self, run: Any) -> None:
        now, saver = time.perf_counter(), run.session.saver
        if saver.count == 0:  # warm-up: until the first is whole
            self.began = self.last = now
            return
        kind = self.found["writing" if saver.busy else "free"]
        kind["steps"] += 1
        kind["seconds"] += now - self.last
        if saver.busy and not self.busy:
            self.gaps.append(now - self.last)
        self.last, self.busy = now, saver.busy
        if now - self.began > self.seconds and not saver.busy:
            run.stop("measured")

    def on_end(self, run: Any, summary: dict[str, Any]) -> None:
        totals = {
            "checkpoints": summary["checkpoints"]["written"],
            "write_seconds": summary["checkpoints"]["write_seconds"],
            "paused_seconds": summary["checkpoint_seconds"],
        }
        self.path.write_text(json.dumps({**self.found, **totals, "gaps": self.gaps}))


def job(options: argparse.Namespace) -> None:
    settings = load_config(options.config)
    assert settings.run_dir is not None
    path = Path(settings.run_dir) / "pace.json"
    if options.spare:  # everything on one core, only the servers' writing threads on another
        os.sched_setaffinity(0, {0})
        write = ShardWriter.write

        def elsewhere(self: ShardWriter) -> None:
            os.sched_setaffinity(0, {1})
            write(self)

        ShardWriter.write = elsewhere  # type: ignore[method-assign]
    ph.train(settings, callbacks=[Pace(options.seconds, path)], quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    io = commands.add_parser("io")
    io.add_argument("--rows", type=int, default=10_000_000)
    io.add_argument("--dim", type=int, default=16)
    io.add_argument("--repeat", type=int, default=3)
    io.set_defaults(run=measure_io)
    train = commands.add_parser("train")
    train.add_argument("--rows", type=int, default=10_000_000)
    train.add_argument("--batch", type=int, default=2048)
    train.add_argument("--seconds", type=float, default=60)
    train.add_argument("--every-seconds", type=float, default=12)
    train.set_defaults(run=measure_training)
    train.add_argument("--spare", action="store_true", help="ranks on core 0, only the writer on core 1")
    for command in (io, train):
        command.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    rank = commands.add_parser("job")  # what `train` starts
    rank.add_argument("config")
    rank.add_argument("--seconds", type=float)
    rank.add_argument("--spare", action="store_true")
    rank.set_defaults(run=job)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
