"""Keeps one job busy and disturbed for a long time: `make soak`.

    python -m tests.support.soak [--minutes M] [--features N] [--ranks P,W,T] [--seed S]

The job has many features and follows a folder into which new files come while it trains. It writes
checkpoints, evaluates, and its ranks are stopped and go on again (SIGSTOP, SIGCONT) at random. In the end
every pulled row must be accounted for, the checkpoints must be whole, no rank's memory may have grown
in the last third, and no process may be left. Exit code 1, and the folder is kept, if anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from persia_hpc.launch.registry import read_ranks
from persia_hpc.launch.shared_memory import mapped_files
from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter
from tests.support.chaos import Job, check_checkpoints
from tests.support.jobs import write_config
from tests.support.tiny import REDUCER

ROWS = 4000  # of a file
VOCABULARY = 3000  # of a feature: all tables are full soon
GROWTH = 1.15
GROWTH_BYTES = 24 << 20
STOP_SECONDS = 3.0  # at most


def schema_of(num_features: int) -> DatasetSchema:
    """Every third feature has several ids a sample."""
    return DatasetSchema(tuple(FeatureSchema(f"f{i}", i % 3 == 2) for i in range(num_features)), ("x0", "x1"))


def write_file(path: Path, schema: DatasetSchema, seed: int) -> None:
    """A file that appears under its name only when it is whole."""
    rng = np.random.default_rng(seed)
    ids = {}
    for feature in schema.features:
        lengths = rng.integers(0, 4, ROWS) if feature.multi else np.ones(ROWS, np.int64)
        values = rng.integers(0, VOCABULARY, lengths.sum()).astype(np.uint64)
        ids[feature.name] = IdColumn.from_lengths(values, lengths) if feature.multi else IdColumn(values)
    labels = rng.integers(0, 2, (ROWS, 1)).astype(np.float32)
    with DatasetWriter(path, schema, chunk_rows=1024) as writer:
        writer.write(SampleBatch(ids, rng.normal(size=(ROWS, 2)).astype(np.float32), labels))


def settings(folder: Path, schema: DatasetSchema, ranks: tuple[int, ...]) -> dict[str, Any]:
    """A hybrid run that follows `folder/in`, with small tables in all of which rows come and go."""
    return {
        "mode": "hybrid",
        "staleness_bound": 3,
        "seed": 7,
        "ranks": dict(zip(("parameter_servers", "embedding_workers", "trainers"), ranks, strict=True)),
        "data": {
            "train": [str(folder / "in" / "*.h5")],
            "valid": [str(folder / "valid.h5")],
            "follow": True,
            "batch_size": 256,
        },
        "tables": {"default": {"dim": 4, "capacity": "64 KiB", "buckets": 8}},
        "features": {f.name: {"pooling": "sum"} for f in schema.features},
        "model": {"class": "tests.support.models:Small"},
        "train": {
            "optimizer": {"name": "Adam", "lr": 0.001},
            "threads": 1,
            "evaluate_every": 200,
            "reducer": REDUCER,
        },
        "checkpoint": {"every": 50, "full_every": 4, "keep": 2},
    }


class Soak:
    """Holds the job and what is seen of it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.draw = random.Random(options.seed)
        self.schema = schema_of(options.features)
        (folder / "in").mkdir()
        self.files = 0
        for _ in range(2):
            self.drop()
        write_file(folder / "valid.h5", self.schema, 10**6)
        ranks = tuple(map(int, options.ranks.split(",")))
        self.num_ranks = sum(ranks)
        config = write_config(folder / "soak.toml", settings(folder, self.schema, ranks))
        self.shared_memory: set[str] = set()  # files that the ranks map
        self.job = Job(config, folder / "run")
        self.seconds = 60.0 * options.minutes
        self.memory: dict[int, list[int]] = defaultdict(list)  # of each rank, at regular intervals
        self.stops = 0

    def drop(self) -> None:
        """Lets a new file come."""
        self.files += 1
        write_file(self.folder / "next.h5", self.schema, self.files)
        (self.folder / "next.h5").rename(self.folder / "in" / f"{self.files:06d}.h5")

    def events(self) -> list[dict[str, Any]]:
        path = self.job.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def look(self) -> None:
        """Notes the memory of each rank."""
        for rank in read_ranks(self.job.run_dir).values():
            self.shared_memory |= mapped_files(rank.pid)
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{rank.pid}/status").read_text()
                self.memory[rank.world_rank].append(int(status.split("VmRSS:")[1].split()[0]) << 10)

    def disturb(self) -> None:
        """Stops a rank for a while."""
        pids = self.job.pids()
        if len(pids) == self.num_ranks:
            pid = self.draw.choice(pids)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.draw.uniform(0.05, STOP_SECONDS))
                os.kill(pid, signal.SIGCONT)
                self.stops += 1

    def run(self) -> None:
        """Goes on until the time is over, then lets the job come to its end."""
        started = self.job.wait_for(lambda: any(e["event"] == "train" for e in self.events()))
        assert started, self.job.said()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            assert self.job.process.poll() is None, f"ended early: {self.job.said()}"
            last = self.events()[-1]["event"]
            if last == "wait" or self.draw.random() < 0.1:
                self.drop()
            self.look()
            if self.draw.random() < 0.3:
                self.disturb()
            time.sleep(1.0)
        (self.folder / "in" / "_END").touch()
        code = self.job.end()
        assert code == 0, f"exit code {code}: {self.job.said()}"

    def check(self) -> str:
        """Raises AssertionError unless all is well; returns a line on what was done."""
        summary = json.loads((self.job.run_dir / "summary.json").read_text())
        ledger = summary["embedding"]
        parts = ("applied", "evicted_in_flight", "unadmitted", "nonfinite", "dropped")
        assert ledger["pulled_rows"] == sum(ledger[f"{part}_rows"] for part in parts) > 0, ledger
        assert ledger["dropped_rows"] == ledger["nonfinite_rows"] == 0, ledger
        assert summary["status"] == "completed", summary["status"]
        assert summary["samples"] == self.files * ROWS, (summary["samples"], self.files)
        check_checkpoints(self.job.run_dir)
        left = [p.name for p in self.job.run_dir.rglob("*") if p.name.endswith((".partial", ".damaged"))]
        assert not left, f"left behind: {left}"
        mapped = [name for name in self.shared_memory if Path(name).exists()]
        assert not mapped, f"shared memory is left: {mapped}"
        for rank, sizes in self.memory.items():
            third = len(sizes) // 3
            before, after = max(sizes[: 2 * third], default=0), max(sizes[2 * third :], default=0)
            grown = f"rank {rank} has grown from {before >> 20} to {after >> 20} MiB"
            assert third < 10 or after <= before * GROWTH + GROWTH_BYTES, grown
        return (
            f"{summary['steps']} steps, {len(self.schema.features)} features, {self.num_ranks} ranks, "
            f"{self.files} files, {self.stops} stops, {summary['checkpoints']['written']} checkpoints: "
            f"{ledger['pulled_rows']:,} rows pulled = {ledger['applied_rows']:,} applied + "
            f"{ledger['evicted_in_flight_rows']:,} evicted in flight"
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs one job for some minutes; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--ranks", default="2,2,2", help="servers, workers, trainers (default: 2,2,2)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="persia-soak-"))
    soak = Soak(folder, options)
    try:
        soak.run()
        print(soak.check())
    except AssertionError as error:
        print(f"FAILED, kept in {folder}: {error}", file=sys.stderr)
        return 1
    finally:
        if soak.job.process.poll() is None:
            soak.job.process.kill()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
