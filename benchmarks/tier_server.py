"""What a server's steps cost its processor with a disk tier: ids like W0's, one thread, no MPI.

    python -m benchmarks.tier_server --folder /local/nvme [--times 1 8 32]

26 tables, each 262,144 ids by Zipf(1.05) from a million, in batches of 2048, in two passes; a step's push and
end come 4 steps after its pull. Prints for each pass the rows that come back and µs of processor a sample.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.disk_tier import ROW_BYTES
from benchmarks.tier_policies import BATCH, SAMPLES, TABLES, VOCABULARY
from persia_hpc._native import PendingPull, mix
from persia_hpc.config import load_config
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

DIM, LAG = 16, 4


def make_pulls() -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Returns the keys of each step with their number by table, and the most ids that a table has."""
    random = np.random.default_rng(1)
    weights = np.cumsum(np.arange(1, VOCABULARY + 1, dtype=np.float64) ** -1.05)
    ids = [
        np.searchsorted(weights / weights[-1], random.random(SAMPLES)).astype(np.uint64)
        for _ in range(TABLES)
    ]
    pulls = []
    for _ in range(2):
        order = random.permutation(SAMPLES)
        for some in np.split(order, SAMPLES // BATCH):
            keys = [np.sort(mix(np.unique(each[some]))) for each in ids]
            pulls.append((np.concatenate(keys), np.array([len(k) for k in keys], np.uint32)))
    return pulls, max(len(np.unique(each)) for each in ids)


def make_server(folder: str, most: int, factor: int) -> ParameterServer:
    table = {"dim": DIM, "optimizer": {"name": "rowwise_adagrad", "lr": 0.05}, "capacity": "256 MiB"}
    if factor > 1:
        table["capacity"] = max(most // factor, BATCH + 64) * ROW_BYTES
        table["disk"] = {"path": folder, "capacity": "1 GiB"}
    config = load_config(
        {"data": {"train": ["none"]}, "model": {"class": "dlrm"}, "tables": {"default": table}}
    )
    schema = DatasetSchema(tuple(FeatureSchema(f"f{i}") for i in range(TABLES)))
    server = ParameterServer(config, make_layout(config, schema))
    server.clock.begin_segment(1, 1 << 20)
    return server


def measure(server: ParameterServer, pulls: list[tuple[np.ndarray, np.ndarray]], factor: int) -> None:
    most = max(len(keys) for keys, _ in pulls)
    gradients = np.random.default_rng(2).normal(scale=0.01, size=(most, DIM)).astype(np.float32)
    out, tables, steps = np.empty_like(gradients), server._set, len(pulls) // 2
    tables.set_lr(np.full(TABLES, 0.05))
    in_flight: list[PendingPull] = []
    for turn in range(2):
        spent, before = np.zeros(3), sum(t.from_disk_rows for t in server.tables if t is not None)
        for step in range(turn * steps + 1, (turn + 1) * steps + 1):
            pull = PendingPull(step, 0, *pulls[step - 1])
            times = [time.process_time()]
            tables.pull(pull, [out[: len(pull)]])
            times.append(time.process_time())
            in_flight.append(pull)
            done = in_flight.pop(0) if len(in_flight) >= LAG else None
            if done is not None:
                tables.push([(done, [gradients[: len(done)]])], done.step)
            times.append(time.process_time())
            if done is not None:
                tables.evict(done.step)
            times.append(time.process_time())
            spent += np.diff(times)
        back = sum(t.from_disk_rows for t in server.tables if t is not None) - before
        pull_us, push_us, end_us = 1e6 * spent / (steps * BATCH)
        print(
            f"{factor} x memory, pass {turn + 1}: {back / (steps * BATCH):.2f} rows a sample came back; "
            f"pulls {pull_us:.2f} us, pushes {push_us:.2f}, ends of steps {end_us:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="a directory on the drive that is measured")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    pulls, most = make_pulls()
    for factor in options.times:
        measure(make_server(options.folder, most, factor), pulls, factor)


if __name__ == "__main__":
    main()
