"""A table's disk tier: pulls of cold rows beside the drive's own reads and other stores, and whole training.

    python -m benchmarks.disk_tier reads --folder /local/nvme [--rows 2000000]
    python -m benchmarks.disk_tier train --folder /local/nvme [--samples 524288] [--times 8 32]
    python -m benchmarks.disk_tier memory --folder /local/nvme [--rows 100000000]
    python -m benchmarks.disk_tier start --folder /local/nvme [--rows 10000000]
    python -m benchmarks.disk_tier checkpoints --folder /local/nvme [--rows 10000000]
    python -m benchmarks.disk_tier moves --folder /local/nvme [--rows 2000000]

reads: rows of dim 16 with row-wise Adagrad, an eighth of them in memory; random rows that are on disk, 4096
a pull, with nothing of the file in the page cache. The drive's own rate is that of 16 threads that read the
same records of the same file. RocksDB and LMDB (pip install rocksdict lmdb) hold the same bytes, RocksDB with
a block cache of the table's memory, as its documentation advises for point look-ups: no compression, bloom
filters; both are asked for 4096 keys in one call.
memory: the resident memory that each row on disk takes.
start: what a server takes to load its rows from a checkpoint, alone and with the comparison of checksums
beside it as a start does, in turns with a plain read of the file; nothing of it is in the page cache. And how
much more of its own memory the process has then.
checkpoints: full ones of one server, two of the same rows and others after some have come back, at last two
after a start; what each reads and writes, and how long it takes; nothing of the rows on disk is in the page
cache.
moves: steps that pull random rows until each has come and gone several times, so that sparse extents
are moved all the time: what that writes beside the rows that go to disk, and what a step's end takes.
train: W0 (bench train) with Zipf(1.05), 1+1+1 under MPI; memory for all rows, and for an 8th and a 32nd.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.other_stores import forget, forget_below, lmdb, rocksdb
from persia_hpc._native import PendingPull, Table, TableConfig, TableSet, mix
from persia_hpc.bench.train_jobs import run_job, synthetic, w0_settings
from persia_hpc.checkpoint import files
from persia_hpc.checkpoint.adopt import Adoption
from persia_hpc.checkpoint.manifest import read_manifest
from persia_hpc.checkpoint.names import DENSE, shard_name
from persia_hpc.checkpoint.parts import open_parts
from persia_hpc.checkpoint.rows import load_rows, load_table
from persia_hpc.checkpoint.shards import ShardWriter
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.source import open_source
from persia_hpc.table_layout import make_layout

DIM, AT_ONCE, THREADS, IN_MEMORY, BATCH = 16, 4096, 16, 8, 2048
RECORD = 16 + 4 * DIM + 8
ROW_BYTES = 4 * DIM + 4 + 24  # with its index, as `capacity` counts


def cold_table(folder: str, keys: np.ndarray) -> Table:
    """A table that has had all keys, in random order, an eighth of them in memory."""
    config = {"dim": DIM, "optimizer": "rowwise_adagrad", "options": {"lr": 0.05}, "init": "uniform"}
    config |= {"init_a": -0.01, "init_b": 0.01, "seed": 1, "num_buckets": 256}
    config |= {"first_bucket": 0, "end_bucket": 256, "bucket_capacity": len(keys) // 256 // IN_MEMORY}
    table = Table(TableConfig(**config, disk_folder=folder, disk_bytes=4 * RECORD * len(keys)))
    for step, part in enumerate(np.array_split(np.random.default_rng(1).permutation(keys), 64), 1):
        part.sort()
        out = np.empty((len(part), DIM), np.float32)
        table.pull(part, step, out, np.empty(len(part), np.uint32))
        table.evict(step)
    return table


def files_in(folder: str) -> Iterator[int]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(folder + "/") and os.stat(entry).st_size:
                yield int(entry.name)
        except OSError:
            continue


def bare_rate(file: int, count: int, threads: int) -> float:
    """Records a second that threads read at random places of a file, which no cache has."""
    again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    os.posix_fadvise(again, 0, 0, os.POSIX_FADV_RANDOM)
    forget(iter([file]))
    records = os.fstat(file).st_size // RECORD
    places = np.random.default_rng(3).integers(0, records, (threads, count // threads)) * RECORD

    def read(mine: list[int]) -> None:
        for place in mine:
            os.pread(again, RECORD, place)

    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        list(pool.map(read, [p.tolist() for p in places]))
        seconds = time.perf_counter() - begin
    os.close(again)
    return places.size / seconds


def measure_reads(folder: str, rows: int) -> None:
    keys = np.sort(mix(np.arange(rows, dtype=np.uint64)))
    table = cold_table(folder, keys)
    print(f"{rows:,} rows, {table.cold_rows:,} on disk in {table.disk_bytes / 2**20:,.0f} MiB", flush=True)
    (file,) = files_in(folder)
    for threads in (1, THREADS, 4 * THREADS):
        print(f"drive, {threads} threads: {bare_rate(file, 20_000, threads):,.0f} records/s", flush=True)
    cold = np.random.default_rng(1).permutation(keys)[: rows // 2]  # used first, so they went
    np.random.default_rng(5).shuffle(cold)  # or they would lie side by side, as they were evicted
    batches = [np.sort(part) for part in np.array_split(cold[: 12 * AT_ONCE], 12)]
    tables = TableSet([table], [0], [DIM])
    step = 100
    for what in ("pull", "asked for 1 pull ahead, then pulled", "pull, page cache warm"):
        seconds, before = 0.0, table.from_disk_rows
        mine, batches = batches[:4], batches[4:]
        if what != "pull, page cache warm":
            forget(files_in(folder))
        else:
            os.pread(file, os.fstat(file).st_size, 0)
        pulls = [PendingPull(step, 0, keys_, np.array([len(keys_)], np.uint32)) for keys_ in mine]
        for i, pull in enumerate(pulls):
            out = np.empty((len(pull), DIM), np.float32)
            begin = time.perf_counter()
            if "ahead" in what:
                for other in pulls[i + (i > 0) : i + 2]:
                    tables.ask_disk(other)
            tables.pull(pull, [out])
            seconds += time.perf_counter() - begin
        table.evict(step := step + 1)
        count = table.from_disk_rows - before
        print(f"ours, {what}: {count / seconds:,.0f} rows/s ({count:,} rows)", flush=True)
    values = np.random.default_rng(2).normal(size=(rows, DIM + 1)).astype(np.float32)
    chosen = [k.tobytes() for k in np.random.default_rng(4).permutation(keys)[: 4 * AT_ONCE]]
    for name, store in (("rocksdict", rocksdb), ("lmdb", lmdb)):
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed", flush=True)
            continue
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            get = store(inside, keys, values, rows // IN_MEMORY * ROW_BYTES)
            begin = time.perf_counter()
            for i in range(0, len(chosen), AT_ONCE):
                get(chosen[i : i + AT_ONCE])
            seconds = time.perf_counter() - begin
            print(f"{name}: {len(chosen) / seconds:,.0f} rows/s, read only", flush=True)


def written_bytes() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def measure_moves(folder: str, rows: int) -> None:
    keys = np.sort(mix(np.arange(rows, dtype=np.uint64)))
    table, random = cold_table(folder, keys), np.random.default_rng(6)
    out, slots = np.empty((AT_ONCE, DIM), np.float32), np.empty(AT_ONCE, np.uint32)
    steps = max(1, 2 * rows // AT_ONCE)
    for turn in range(4):
        pulls, ends = np.empty(steps), np.empty(steps)
        gone, written = table.to_disk_rows, written_bytes()
        for i in range(steps):
            chosen = keys[np.sort(random.choice(rows, AT_ONCE, replace=False, shuffle=False))]
            begin = time.perf_counter()
            table.pull(chosen, 100 + turn * steps + i, out, slots)
            middle = time.perf_counter()
            table.evict(100 + turn * steps + i)
            pulls[i], ends[i] = middle - begin, time.perf_counter() - middle
        gone, written = table.to_disk_rows - gone, written_bytes() - written
        print(
            f"{turn}: {gone:,} rows of {RECORD} bytes to disk, {written / gone:.0f} bytes written for each; "
            f"{table.disk_bytes / table.cold_rows:.0f} bytes of file a row; a pull of {AT_ONCE} "
            f"{1e3 * np.median(pulls):.2f} ms (99 %: {1e3 * np.quantile(pulls, 0.99):.2f}), a step's end "
            f"{1e3 * np.median(ends):.2f} ms (99 %: {1e3 * np.quantile(ends, 0.99):.2f})",
            flush=True,
        )


def resident_bytes() -> int:
    """The process's own: pages of the file that it has mapped are the system's, which takes them back."""
    _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


def trim_memory() -> None:
    """Gives back what a table that is gone has left in the heap."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def measure_memory(folder: str, rows: int) -> None:
    at_once, buckets = 1 << 18, 1024
    config = {"dim": DIM, "optimizer": "rowwise_adagrad", "options": {"lr": 0.05}, "init": "uniform"}
    config |= {"init_a": -0.01, "init_b": 0.01, "seed": 1, "num_buckets": buckets}
    config |= {"first_bucket": 0, "end_bucket": buckets, "bucket_capacity": at_once // buckets}
    table = Table(TableConfig(**config, disk_folder=folder, disk_bytes=4 * RECORD * rows))
    out, slots = np.empty((at_once, DIM), np.float32), np.empty(at_once, np.uint32)
    begin, before, cold = time.perf_counter(), 0, 0
    for step in range(1, -(-rows // at_once) + 3):
        keys = np.sort(mix(np.arange((step - 1) * at_once, step * at_once, dtype=np.uint64)))
        table.pull(keys, step, out, slots)
        table.evict(step)
        if step == 2:  # memory is full, and the first rows are on disk
            before, cold = resident_bytes(), table.cold_rows
        if step % 64 == 0:
            seconds, each = (
                time.perf_counter() - begin,
                (resident_bytes() - before) / (table.cold_rows - cold),
            )
            print(f"{table.cold_rows:,} rows on disk after {seconds:,.0f} s, {each:.2f} bytes", flush=True)
    more = table.cold_rows - cold
    print(
        f"{table.cold_rows:,} rows of {RECORD} bytes on disk, {table.disk_bytes / 2**30:.2f} GiB: "
        f"{(resident_bytes() - before) / more:.2f} bytes of resident memory a row, "
        f"by the table's own count {table.memory_bytes / table.cold_rows:.2f} with all else",
        flush=True,
    )


def filled_server(folder: str, rows: int) -> tuple[ParameterServer, int, dict[str, Any]]:
    """A server whose table has had so many rows, its last step, and what a checkpoint's manifest says."""
    tables = {"f0": {"dim": DIM, "capacity": "64 MiB", "optimizer": {"name": "rowwise_adagrad"}}}
    tables["f0"]["disk"] = {"path": folder, "capacity": 4 * RECORD * rows}
    config = load_config({"data": {"train": ["none"]}, "model": {"class": "dlrm"}, "tables": tables})
    schema = DatasetSchema((FeatureSchema("f0"),))
    server = ParameterServer(config, make_layout(config, schema))
    (table,), at_once, step = server.tables, 1 << 17, 0
    assert table is not None
    out, slots = np.empty((at_once, DIM), np.float32), np.empty(at_once, np.uint32)
    for step in range(1, -(-rows // at_once) + 1):
        keys = np.sort(mix(np.arange((step - 1) * at_once, step * at_once, dtype=np.uint64)))
        table.pull(keys, step, out, slots)
        table.evict(step)
    facts: dict[str, Any] = {"config": config, "schema": schema, "versions": {"benchmark": "1"}}
    return server, step, {**facts, "num_samples": {"train": 1}}


def write_checkpoint(
    run: Path, folder: str, server: ParameterServer, step: int, facts: dict[str, Any]
) -> tuple[Path, float]:
    """A checkpoint, and the seconds in which its rows were written; none of the tier is in the page cache."""
    directory = files.begin_checkpoint(run, step)
    forget(files_in(folder))
    begin = time.perf_counter()
    ShardWriter(server, directory / shard_name(0)).write()
    seconds = time.perf_counter() - begin
    (directory / DENSE).write_bytes(b"")
    files.finish_part(directory / DENSE)
    return files.finish_checkpoint(directory, step=step, base=None, **facts), seconds


def io_bytes() -> tuple[int, int]:
    """What this process has read from drives, and written."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"]), int(fields["write_bytes"])


def measure_checkpoints(folder: str, rows: int) -> None:
    server, step, facts = filled_server(folder, rows)
    (table,), at_once, random, path = server.tables, 1 << 14, np.random.default_rng(1), Path()
    assert table is not None
    out, slots = np.empty((at_once, DIM), np.float32), np.empty(at_once, np.uint32)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        for turn in range(8):
            if turn == 6:
                server.empty()
                forget_below(Path(inside))
                load_rows(path, server)
                (table,) = server.tables
                print("a start from the last one:")
            moved = table.to_disk_rows
            if turn not in (0, 1, 6):  # two of the same rows, then about 4 % of them come back each time
                for _ in range(max(1, rows // 25 // at_once)):
                    step += 1
                    ids = np.unique(random.integers(0, rows, at_once, np.uint64))
                    table.pull(np.sort(mix(ids)), step, out[: len(ids)], slots[: len(ids)])
                    table.evict(step)
            moved, before = table.to_disk_rows - moved, io_bytes()
            step += 1
            path, seconds = write_checkpoint(Path(inside), folder, server, step, facts)
            read, written = (a - b for a, b in zip(io_bytes(), before, strict=True))
            size = sum(each.stat().st_size for each in path.iterdir())
            print(
                f"{turn}: {table.num_rows:,} rows, {table.cold_rows:,} on disk, {moved:,} went there since: "
                f"{seconds:.2f} s, {read / 2**20:,.0f} MiB read, {written / 2**20:,.0f} MiB written; "
                f"{size / 2**20:,.0f} MiB in {len(list(path.iterdir())) - 2} files",
                flush=True,
            )
            files.prune(Path(inside), keep=2, keep_every=0)


def measure_start(folder: str, rows: int) -> None:
    server, step, facts = filled_server(folder, rows)
    (table,) = server.tables
    assert table is not None
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        checkpoint, written = write_checkpoint(Path(inside), folder, server, step, facts)
        rows = table.num_rows
        paths = [path for path in checkpoint.iterdir() if path.suffix == ".h5"]
        size = sum(path.stat().st_size for path in paths)
        print(f"{rows:,} rows ({table.cold_rows:,} on disk): {size / 2**20:,.0f} MiB in {written:.1f} s")

        def read() -> None:
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    while file.read(4 << 20):
                        pass

        def load() -> None:
            with ExitStack() as opened:
                parts = open_parts(checkpoint, read_manifest(checkpoint), shard_name(0), opened)
                adoption = Adoption(checkpoint, read_manifest(checkpoint), 0, 1, lambda _: None)
                load_table([[parts]], server.layout.tables[0], server.tables[0], server.buckets[0], adoption)

        def start() -> None:
            load_rows(checkpoint, server)

        for turn in range(3):
            seconds = []
            for what in (read, load, start):
                server.empty()
                trim_memory()
                forget_below(Path(inside))
                begin, before = time.perf_counter(), resident_bytes()
                what()
                seconds.append(time.perf_counter() - begin)
                loaded = sum(t.num_rows for t in server.tables if t is not None)
                assert loaded == (0 if what is read else rows)
            alone, tables, whole = seconds
            print(
                f"{turn}: read {alone:.2f} s, loaded in {tables:.2f} s ({tables / alone:.2f} of it), "
                f"with checksums {whole:.2f} s ({whole / alone:.2f}); "
                f"{(resident_bytes() - before) / 2**20:,.0f} MiB more memory",
                flush=True,
            )


def measure_train(folder: str, samples: int, times: list[int]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = synthetic(Path(inside), samples // 2, exponent=1.05)
        source = open_source([str(path)])
        ids = source.read(0, source.num_samples).ids
        most = max(len(np.unique(column.values)) for column in ids.values())
        print(f"{samples // 2:,} samples, up to {most:,} rows a table", flush=True)
        alone = 0.0
        for factor in (1, *times):
            settings = w0_settings(path, BATCH, samples)
            if factor > 1:
                default = settings["tables"]["default"]
                default["capacity"] = max(most // factor, BATCH + 64) * ROW_BYTES
                default["disk"] = {"path": inside, "capacity": "1 GiB"}
            summary = run_job(Path(inside), settings)
            steady, moved = summary["steady"]["samples_per_second"], summary["embedding"]
            alone = alone or steady
            gone, back = (moved[name] / samples for name in ("to_disk_rows", "from_disk_rows"))
            print(
                f"{factor} x memory: {steady:,.0f} samples/s ({steady / alone:.0%}), "
                f"{moved['disk_rows']:,} of {moved['rows']:,} rows on disk; a sample {gone:.2f} went there "
                f"and {back:.2f} came back; {moved['bytes'] / 2**20:,.0f} MiB of memory",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("reads", "train", "memory", "start", "moves", "checkpoints"))
    parser.add_argument("--folder", required=True, help="a directory on the drive that is measured")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--samples", type=int, default=1 << 19)
    parser.add_argument("--times", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    folder = str(Path(options.folder).resolve())
    if options.part == "train":
        measure_train(folder, options.samples, options.times)
    else:
        parts = {"reads": measure_reads, "memory": measure_memory, "start": measure_start}
        parts |= {"moves": measure_moves, "checkpoints": measure_checkpoints}
        parts[options.part](folder, options.rows)


if __name__ == "__main__":
    sys.exit(main())
