"""Reading Criteo-shaped Parquet to batches, beside TorchRec's own pipelines for Criteo in turns.

    make bench-peers        # once, for TorchRec; without it only ours is measured
    python benchmarks/reading.py

Files are in the page cache. Ours are `--samples` samples of 26 ids (int64), 13 numbers (float32) and a label
in row groups of `--row-group`, read by the reader of an embedding worker, shuffled and not, with the
conversions of `preprocess table`. TorchRec reads what its pipelines read: TSV of the same samples to rows
(dictionaries, no batches), `--peer-samples` of them; and arrays that `tsv_to_npys` has made to batches, all.
`from TSV` counts both, as its documentation has it. Printed are samples/s, imports left out: the median and
in brackets the least and the most, and the CPU time of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from persia_hpc.bench.read import parts, write_parquet
from persia_hpc.config.types import DataConfig
from persia_hpc.samples.reader import BatchReader
from persia_hpc.samples.source import open_source

ROOT = Path(__file__).parents[1]
PEER = ROOT / "build" / "torchrec-venv"


def read_parquet(path: Path, schema: Path, batch: int, *, shuffle: bool) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one pass in batches."""
    begin, cpu = time.perf_counter(), time.process_time()
    source = open_source([str(path)], schema_file=str(schema))
    data = DataConfig
    reader = BatchReader(
        source, block_rows=data.block_rows, buffer_blocks=data.buffer_blocks, seed=1, shuffle=shuffle
    )
    for first in range(0, source.num_samples, batch):
        reader.read(0, first, min(first + batch, source.num_samples))
    return time.perf_counter() - begin, time.process_time() - cpu


def write_peer(folder: Path, samples: int, rows: int) -> None:
    """The same samples as TSV (the first `rows`) and as arrays."""
    pieces = list(parts(samples))
    ids = np.concatenate([np.column_stack(list(columns.values())) for columns, _, _ in pieces])
    dense = np.concatenate([numbers for _, numbers, _ in pieces])
    labels = np.concatenate([each for _, _, each in pieces]).astype(np.int32)
    np.save(folder / "sparse.npy", ids.astype(np.int32))
    np.save(folder / "dense.npy", dense)
    np.save(folder / "labels.npy", labels)
    with (folder / "rows.tsv").open("w") as file:
        for label, numbers, row in zip(labels[:rows, 0], dense[:rows], ids[:rows], strict=True):
            whole = [str(int(abs(number) * 100)) for number in numbers]
            file.write("\t".join([str(label), *whole, *(f"{i:08x}" for i in row)]) + "\n")


def read_peer(folder: Path, batch: int) -> dict[str, float]:
    """Seconds of TorchRec's pipelines."""
    program = ROOT / "benchmarks" / "peers" / "torchrec_reading.py"
    command = [str(PEER / "bin" / "python"), str(program), str(folder), "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"TorchRec failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--peer-samples", type=int, default=100_000, help="of TSV")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--row-group", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--compression", nargs="+", default=["snappy", "zstd"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        files = {}
        for rows in options.row_group:
            for compression in options.compression:
                path = folder / f"{compression}-{rows}.parquet"
                schema = write_parquet(path, options.samples, compression, rows)
                files[f"Parquet, {compression}, groups of {rows:,}"] = path, schema
        peer = (PEER / "done").exists()
        if peer:
            write_peer(folder, options.samples, options.peer_samples)
        else:
            print("no TorchRec: make bench-peers", flush=True)
        rates: dict[str, list[float]] = {}
        cpus: dict[str, list[float]] = {}
        for number in range(options.repeats):
            for case, (path, schema) in files.items():
                for shuffle in (True, False):
                    title = f"{case}, {'shuffled' if shuffle else 'in order'}"
                    wall, cpu = read_parquet(path, schema, options.batch, shuffle=shuffle)
                    rates.setdefault(title, []).append(options.samples / wall)
                    cpus.setdefault(title, []).append(cpu / options.samples)
            if peer:
                found = read_peer(folder, options.batch)
                each = found["arrays"] / options.peer_samples + found["batches"] / options.samples
                rates.setdefault("TorchRec, TSV to rows", []).append(options.peer_samples / found["rows"])
                rates.setdefault("TorchRec, from TSV by arrays to batches", []).append(1 / each)
                rates.setdefault("TorchRec, arrays to batches", []).append(options.samples / found["batches"])
            print(f"round {number + 1} of {options.repeats} done", file=sys.stderr, flush=True)
    print("| case | samples/s (least to most) | CPU µs/sample |\n|---|---|---|")
    for title, values in rates.items():
        spent = f"{1e6 * statistics.median(cpus[title]):.2f}" if title in cpus else ""
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"| {title} | {statistics.median(values):,.0f} ({spread}) | {spent} |")


if __name__ == "__main__":
    main()
