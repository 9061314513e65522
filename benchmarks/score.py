"""One request of a service: `ph.load(run).score` beside `predict` with a file of one sample.

    python -m benchmarks.score [--ids 1000000]

The model is DLRM's with 26 id features of dim 16 and 13 dense ones; the tables are trained
for a few steps only, which changes no time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import persia_hpc as ph
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.writer import DatasetWriter

FEATURES, DENSE, SAMPLES = 26, 13, 20_000


def write(path: Path, schema: ph.DatasetSchema, batch: SampleBatch) -> str:
    with DatasetWriter(path, schema) as writer:
        writer.write(batch)
    return str(path)


def median(call: Callable[[int], object], count: int) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    for i in range(count // 10 + 1):
        call(i)
    times = []
    for i in range(count):
        begin = time.perf_counter()
        call(i)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times), float(np.percentile(times, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ids", type=int, default=100_000, help="of each feature")
    ids_of_feature = parser.parse_args().ids
    random = np.random.default_rng(1)
    names = [f"c{i}" for i in range(FEATURES)]
    schema = ph.DatasetSchema(
        tuple(ph.FeatureSchema(name) for name in names), tuple(f"i{i}" for i in range(DENSE))
    )
    ids = {name: IdColumn(random.integers(0, ids_of_feature, SAMPLES, dtype=np.uint64)) for name in names}
    dense = random.normal(size=(SAMPLES, DENSE)).astype(np.float32)
    labels = random.integers(0, 2, (SAMPLES, 1)).astype(np.float32)
    batch = SampleBatch(ids, dense, labels)
    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder, "train.h5"), schema, batch)
        one = write(Path(folder, "one.h5"), schema, batch.slice(0, 1))
        config = {
            "mode": "sync",
            "run_dir": f"{folder}/run",
            "data": {"train": [data], "batch_size": 2048},
            "tables": {"default": {"dim": 16, "capacity": "64 MiB"}},
            "model": {"class": "dlrm", "hidden": [512, 256], "bottom": [512, 256]},
            "train": {"threads": 1},
        }
        ph.train(config, quiet=True)
        run = ph.load(f"{folder}/run")
        requests = [
            ({name: int(column.values[i]) for name, column in ids.items()}, dense[i]) for i in range(1000)
        ]
        many = ({name: column.values[:512] for name, column in ids.items()}, dense[:512])
        for what, call, count in (
            ("score, one request", lambda i: run.score(*requests[i % 1000]), 2000),
            ("score, 512 samples", lambda _: run.score(*many), 200),
            ("predict, one sample in a file", lambda _: run.predict([one], f"{folder}/out.csv"), 50),
        ):
            middle, slow = median(call, count)
            print(f"{what}: {middle:.2f} ms, p99 {slow:.2f} ms")


if __name__ == "__main__":
    main()
