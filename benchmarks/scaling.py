"""How cost grows: rows, features, ids a sample, virtual vocabulary; servers and workers of small real jobs.

    python benchmarks/scaling.py [rows features multihot vocabulary ranks] [--json FILE]

The first four call the engines of worker and server in this process, without MPI: dedup, pull, pooling
forward and backward, push, all rows resident. Time is the CPU time of the thread, which other jobs on the
machine can't lengthen by taking turns. Cases take turns within each repetition, and `x` is the median over
the repetitions of a case's pull+push per row divided by the first case's in the same repetition. Ids are
virtual: drawn from so many, of which the resident rows are all that is ever used. `ranks` runs `persia-hpc
train` with real ranks, which share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc._native import PendingPull, gather_pool_backward, gather_pool_forward, mix
from persia_hpc.bench.measure import Result, Timing, machine, summarize, table_lines
from persia_hpc.config import load_config, parse_bytes, to_toml
from persia_hpc.embedding_worker.engine import EmbeddingWorker
from persia_hpc.parameter_server.engine import ParameterServer
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.table_layout import make_layout

CLI = [sys.executable, "-c", "import sys; from persia_hpc.cli import main; sys.exit(main())"]
FILL_IDS = 1 << 18
NUM_BATCHES = 8  # made before the clock starts, used in turn
ROW_BYTES = 120  # of a resident row of dim 16, with room to grow: what decides whether a case fits


class Engines:
    """A worker and a server whose tables hold `rows` rows in all, and batches of `ids` of them."""

    def __init__(self, *, rows: int, vocabulary: int, features: int, length: int, ids: int, dim: int = 16):
        self.rows, self.features, self.length = rows // features, features, length
        self.stride = max(1, vocabulary // features // self.rows)
        self.samples = max(1, ids // (features * length))
        names = [f"f{i}" for i in range(features)]
        self.schema = DatasetSchema(tuple(FeatureSchema(name, length > 1) for name in names), ())
        config = load_config(
            {
                "mode": "sync",
                "data": {"train": ["none"], "batch_size": 1},
                "model": {"class": "tower"},
                "tables": {
                    "default": {
                        "dim": dim,
                        "optimizer": "rowwise_adagrad",
                        "capacity": 2 * max(self.rows, 4096) * ROW_BYTES,
                    }
                },
            }
        )
        layout = make_layout(config, self.schema)
        self.worker, self.server = EmbeddingWorker(layout), ParameterServer(config, layout)
        self.server.clock.begin_segment(1, 1 << 30)
        self.step = 0
        self.generator = np.random.default_rng(1)
        at_once = max(1, FILL_IDS // features)
        for begin in range(0, self.rows, at_once):
            ordinals = np.arange(begin, min(self.rows, begin + at_once), dtype=np.uint64)
            self._run([self._ids(ordinals)] * features, 1)
        self.batches = [self._draw() for _ in range(NUM_BATCHES)]

    def measure(self) -> dict[str, float]:
        """Nanoseconds of CPU: dedup and pooling per id, pull and push per unique row."""
        return self._run(self.batches[self.step % NUM_BATCHES], self.length)

    def _ids(self, ordinals: np.ndarray) -> np.ndarray:
        # One of each `stride` ids, at no regular distance.
        return ordinals * np.uint64(self.stride) + mix(ordinals) % np.uint64(self.stride)

    def _draw(self) -> list[np.ndarray]:
        count = self.samples * self.length
        return [
            self._ids(self.generator.integers(self.rows, size=count, dtype=np.uint64))
            for _ in range(self.features)
        ]

    def _run(self, values: list[np.ndarray], length: int) -> dict[str, float]:
        self.step += 1
        count = len(values[0]) // length
        offsets = np.arange(0, count * length + 1, length, dtype=np.uint32) if self.length > 1 else None
        columns = {f.name: IdColumn(v, offsets) for f, v in zip(self.schema.features, values, strict=True)}
        sample = SampleBatch(columns, np.empty((count, 0), np.float32), np.empty((count, 1), np.float32))
        clock = [time.thread_time_ns()]
        batch = self.worker.prepare(sample, step=self.step, trainer=0, num_global=count)
        clock.append(time.thread_time_ns())
        request = self.worker.request(batch)
        keys, counts = request.keys.part(0), request.counts.part(0)
        out = [np.empty(shape, np.float32) for shape in self.server.row_shapes(counts)]
        clock.append(time.thread_time_ns())
        self.server.submit_pull(PendingPull(self.step, 0, keys, counts))
        for pull in self.server.ready_pulls():
            self.server.answer(pull, out)
        clock.append(time.thread_time_ns())
        dedup = batch.dedup
        parts = [
            (int(a), int(b), "sum", offsets)
            for a, b in zip(dedup.feature_offsets[:-1], dedup.feature_offsets[1:], strict=True)
        ]
        dim = out[0].shape[1]
        pooled, _ = gather_pool_forward(out[0], dedup.indices, features=parts, num_samples=count, dim=dim)
        gradients, _ = gather_pool_backward(
            pooled,
            [],
            dedup.indices,
            features=parts,
            num_samples=count,
            num_rows=len(out[0]),
            dim=dim,
        )
        clock.append(time.thread_time_ns())
        self.server.submit_push(self.step, 0, [gradients])
        self.server.apply_ready()
        clock.append(time.thread_time_ns())
        ids, rows = len(dedup.indices), len(dedup.keys)
        took = [end - begin for begin, end in pairwise(clock)]
        return {
            "dedup": took[0] / ids,
            "pull": took[2] / rows,
            "pool": took[3] / ids,
            "push": took[4] / rows,
            "pull+push": (took[2] + took[4]) / rows,
        }


def compare(cases: dict[Any, Engines], name: str, repeats: int) -> Iterator[Result]:
    """A result a case, which took turns."""
    found: dict[Any, list[dict[str, float]]] = {case: [] for case in cases}
    for turn in range(repeats + 1):
        for case, engines in cases.items():
            figures = engines.measure()
            if turn:  # the first fills caches and working memory
                found[case].append(figures)
    first = next(iter(found.values()))
    for case, rounds in found.items():
        columns = {k: summarize([r[k] for r in rounds]) for k in rounds[0]}
        ratios = [r["pull+push"] / f["pull+push"] for r, f in zip(rounds, first, strict=True)]
        total = columns.pop("pull+push")
        notes = {"x": statistics.median(ratios), **{k: timing.median for k, timing in columns.items()}}
        shown = f"{case:.3g}" if isinstance(case, float) else str(case)
        yield Result(
            {"part": name, name: shown, "resident": cases[case].rows * cases[case].features},
            "ns/row",
            total,
            notes=notes,
        )


def by_rows(options: argparse.Namespace) -> Iterator[Result]:
    """Equal batches from tables of more and more rows."""
    fit = [rows for rows in options.rows if rows * ROW_BYTES <= options.memory]
    for rows in options.rows:
        if rows not in fit:
            print(f"rows={rows:.0e} left out: more than --memory {options.memory >> 20} MiB", file=sys.stderr)
    cases = {
        float(rows): Engines(rows=rows, vocabulary=10**13, features=1, length=1, ids=options.ids)
        for rows in fit
    }
    yield from compare(cases, "rows", options.repeats)


def by_features(options: argparse.Namespace) -> Iterator[Result]:
    """The same ids and rows in more and more features, each with its own table."""
    cases = {
        features: Engines(
            rows=options.resident, vocabulary=10**13, features=features, length=1, ids=options.ids
        )
        for features in (8, 26, 64, 128)
    }
    yield from compare(cases, "features", options.repeats)


def by_length(options: argparse.Namespace) -> Iterator[Result]:
    """The same number of ids in samples of more and more ids."""
    cases = {
        length: Engines(rows=options.resident, vocabulary=10**13, features=8, length=length, ids=options.ids)
        for length in (1, 5, 20, 50)
    }
    yield from compare(cases, "multihot", options.repeats)


def by_vocabulary(options: argparse.Namespace) -> Iterator[Result]:
    """Equal resident rows out of more and more virtual ids; 6.25e12 ids of dim 16 are 100 T parameters."""
    cases = {
        float(vocabulary): Engines(
            rows=options.resident, vocabulary=int(vocabulary), features=1, length=1, ids=options.ids
        )
        for vocabulary in (1e8, 1e9, 1e10, 1e11, 1e12, 6.25e12, 1e13)
    }
    yield from compare(cases, "vocabulary", 3 * options.repeats)


def by_ranks(options: argparse.Namespace) -> Iterator[Result]:
    """Small real jobs with one trainer; all ranks share this machine's cores."""
    counts = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = [
            "--rows",
            "150000",
            "--valid-rows",
            "0",
            "--test-rows",
            "0",
            "--features",
            "8",
            "--vocabulary",
            "100000",
        ]
        _command(["preprocess", "synthetic", *data, "--out", str(root / "data")])
        speeds: dict[tuple[int, int], list[float]] = {count: [] for count in counts}
        for turn in range(options.job_repeats):
            for servers, workers in counts:
                run_dir = root / f"{turn}-{servers}-{workers}"
                config = {
                    "ranks": {"parameter_servers": servers, "embedding_workers": workers, "trainers": 1},
                    "data": {"train": [str(root / "data" / "train-*.h5")], "batch_size": 1024},
                    "tables": {"default": {"dim": 16, "optimizer": "rowwise_adagrad", "capacity": "256 MiB"}},
                    "model": {"class": "tower", "hidden": [16]},
                    "train": {"save": False, "threads": 1},
                }
                (root / "job.toml").write_text(to_toml(config))
                _command(["train", str(root / "job.toml"), "--run-dir", str(run_dir), "--quiet"])
                summary = json.loads((run_dir / "summary.json").read_text())
                speeds[servers, workers].append(summary["samples_per_second"])
        cores = machine()["cores"]
        for (servers, workers), found in speeds.items():
            x = statistics.median(a / b for a, b in zip(found, speeds[counts[0]], strict=True))
            case = {"part": "ranks", "servers": servers, "workers": workers, "sharing_cores": cores}
            ours: Timing = summarize(found)
            yield Result(case, "samples/s", ours, higher_is_better=True, notes={"x": x})


def _command(arguments: list[str]) -> None:
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"persia-hpc {' '.join(arguments)}: exit {done.returncode}\n{done.stderr[-3000:]}")


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Result]]] = {
    "rows": by_rows,
    "features": by_features,
    "multihot": by_length,
    "vocabulary": by_vocabulary,
    "ranks": by_ranks,
}


def _available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add("--ids", type=int, default=1 << 17, help="ids of a batch (default: 131072)")
    add("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**8])
    add("--resident", type=int, default=10**6, help="rows where they don't vary (default: 10^6)")
    add("--repeats", type=int, default=9, help="of the engines (default: 9; vocabulary: 3 times it)")
    add("--job-repeats", type=int, default=2, help="of the jobs (default: 2)")
    add("--memory", type=parse_bytes, help="for one table (default: a third of what is available)")
    add("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"got part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    options.memory = options.memory or _available_memory() // 3
    results = []
    for name in options.parts or PARTS:
        for result in PARTS[name](options):
            results.append(result)
            print(next(table_lines([result])), flush=True)
    if options.json is not None:
        report = {"schema_version": 1, "machine": machine(), "results": [r.as_dict() for r in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
