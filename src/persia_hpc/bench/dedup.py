"""Measures dedup: ids of a batch to unique keys in server order, with indices and their transpose."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from persia_hpc._native import Deduplicator, keep_freed_memory

from .measure import Result, in_turns

SUMMARY = "ids of a batch to unique keys"
EXAMPLES = "example: persia-hpc bench dedup --batch 4096 --features 26"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--batch", type=int, default=4096, help="samples (default: 4096)")
    parser.add_argument("--features", type=int, default=26, help="one-hot features (default: 26)")


def zipf_ids(count: int, vocabulary: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Draws `count` ids below `vocabulary`, id k with a probability proportional to (k + 1)^-exponent.

    Shapes: uint64 [count].
    """
    weights = np.arange(1, vocabulary + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    ids: np.ndarray = np.searchsorted(cumulative, generator.random(count) * cumulative[-1])
    return ids.astype(np.uint64)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures dedup per id, beside NumPy's unique (which orders by value and makes no transpose)."""
    keep_freed_memory()  # as an embedding worker does
    for kind in ("zipf 1.2", "zipf 1.05", "uniform"):
        yield _measure(options, kind)


def _measure(options: argparse.Namespace, kind: str) -> Result:
    generator = np.random.default_rng(1)
    features, batch, vocabulary = options.features, options.batch, 1_000_000
    columns = [
        generator.integers(vocabulary, size=batch, dtype=np.uint64)
        if kind == "uniform"
        else zipf_ids(batch, vocabulary, float(kind.split()[1]), generator)
        for _ in range(features)
    ]
    dedup = Deduplicator(
        tables=list(range(features)),
        groups=[0] * features,
        num_buckets=[1024] * features,
        bounds=[[0, 1024]] * features,
    )
    times = in_turns(
        {
            "ours": lambda: dedup.run(columns),
            "numpy": lambda: [np.unique(c, return_inverse=True) for c in columns],
        },
        options.repeats,
    )
    per_id = {name: timing.scaled(1e9 / (batch * features)) for name, timing in times.items()}
    return Result({"ids": kind, "batch": batch}, "ns/id", per_id["ours"], {"numpy.unique": per_id["numpy"]})
