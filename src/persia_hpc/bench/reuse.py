"""Measures how many rows needn't be sent with `wire.reuse_steps`, and what finding them costs a worker."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from persia_hpc._native import Deduplicator, RecentRows, keep_freed_memory

from .dedup import zipf_ids
from .measure import Result, summarize

SUMMARY = "rows that a trainer still has from the steps before"
EXAMPLES = "example: persia-hpc bench reuse --batch 2048 16384 65536 --steps 1 2 4 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--batch", type=int, nargs="+", default=[2048, 16384], help="samples of a trainer")
    parser.add_argument("--features", type=int, default=26, help="one-hot features (default: 26)")
    parser.add_argument("--vocabulary", type=int, default=1_000_000, help="ids of each (default: 1000000)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="reuse_steps")


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Nanoseconds a unique row, and the share of rows that are reused, in successive batches."""
    keep_freed_memory()  # as an embedding worker does
    for exponent in (1.05, 1.2):
        for batch in options.batch:
            yield from _measure(options, exponent, batch)


def _measure(options: argparse.Namespace, exponent: float, batch: int) -> Iterator[Result]:
    features = options.features
    dedup = Deduplicator(
        tables=list(range(features)),
        groups=[0] * features,
        num_buckets=[1024] * features,
        bounds=[[0, 1024]] * features,
    )
    warm_up = max(options.steps) + 1
    ids = [
        zipf_ids((warm_up + options.repeats) * batch, options.vocabulary, exponent, np.random.default_rng(f))
        for f in range(features)
    ]
    recent = {k: RecentRows(groups=[0] * features, reuse_steps=k) for k in options.steps}
    seconds: dict[int, list[float]] = {k: [] for k in recent}
    stayed: dict[int, list[float]] = {k: [] for k in recent}
    for step in range(1, warm_up + options.repeats + 1):
        unique = dedup.run([column[(step - 1) * batch : step * batch] for column in ids])
        for k, rows in recent.items():
            begin = time.perf_counter()
            wanted = rows.find(unique.keys, unique.table_offsets, step=step)[0]
            if step > warm_up:
                seconds[k].append((time.perf_counter() - begin) / len(wanted) * 1e9)
                stayed[k].append(1 - float(wanted.mean()))
    for k in recent:
        case = {"zipf": exponent, "batch": batch, "steps": k}
        notes = {"rows that stay": summarize(stayed[k]).median}
        yield Result(case, "ns/row", summarize(seconds[k]), notes=notes)
