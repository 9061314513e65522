"""Compares the memory that the cost model predicts for a server's tables with what a server takes.

    python benchmarks/server_memory.py [--tables 300] [--capacity "80 KiB"] [--dim 16] [--optimizer adagrad]
        [--servers 1] [--batch 64] [--buckets 1024]

Makes the largest of `--servers` parameter servers in this process and trains random keys until its tables are
full and evict. Measured is the growth of the process's resident memory. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import PendingPull
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout, server_bytes

PAGE = 4096
ROUNDS = 3  # rows that a table sees, by its capacity


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def compare(
    tables: int, capacity: str, dim: int, optimizer: str, servers: int, batch: int, buckets: int
) -> dict[str, Any]:
    """Returns the bytes predicted and measured, and the rows that the tables hold in the end."""
    schema = DatasetSchema(tuple(FeatureSchema(f"f{i}") for i in range(tables)), ())
    table = {"dim": dim, "capacity": capacity, "optimizer": optimizer, "buckets": buckets}
    config = load_config(
        {
            "mode": "sync",
            "data": {"train": "t.h5", "batch_size": batch},
            "tables": {"default": table},
            "model": {"class": "dlrm"},
        }
    )
    layout = make_layout(config, schema)
    bounds = np.array(layout.bounds(servers)[0])  # the tables are alike
    largest, total = int(np.argmax(np.diff(bounds))), layout.tables[0].num_buckets
    first, end = int(bounds[largest]), int(bounds[largest + 1])
    each = -(-batch * (end - first) // total)  # of each table's rows in a step, those of this server
    steps = ROUNDS * layout.tables[0].capacity_rows // batch + 1
    generator = np.random.default_rng(1)
    counts = np.full(tables, each, np.uint32)
    keys = np.ones(tables * each, np.uint64)
    rows = np.ones((tables * each, dim), np.float32)
    step_rows = [float(batch)] * tables
    predicted = server_bytes(config, layout, servers, step_rows)

    before = resident_bytes()
    server = ParameterServer(config, layout, server_rank=largest, num_servers=servers, num_steps=steps)
    server.clock.begin_segment(1, steps)
    for step in range(1, steps + 1):
        # A key's upper half decides which bucket it is of.
        upper = generator.integers((first << 32) // total, (end << 32) // total, (tables, each), np.uint64)
        lower = generator.integers(0, 1 << 32, (tables, each), np.uint64)
        keys[:] = np.sort(upper << np.uint64(32) | lower, axis=1).ravel()
        server.submit_pull(PendingPull(step, 0, keys, counts))
        for pull in server.ready_pulls():
            server.answer(pull, [rows])
        server.submit_push(step, 0, [rows])
        server.apply_ready()
    measured = resident_bytes() - before
    stored = sum(t.num_rows for t in server.tables if t is not None)
    return {
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": predicted / measured,
        "rows": stored,
        "capacity_rows": tables * (end - first) * layout.tables[0].bucket_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tables", type=int, default=300)
    parser.add_argument("--capacity", default="80 KiB")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--optimizer", default="adagrad")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--buckets", type=int, default=1024)
    print(json.dumps(compare(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
