"""Measures pooling rows to vectors per sample, and their gradients back, beside copying as many bytes.

Bytes are those that the call must touch: indices, outputs, and one vector per id. Forward that is the id's
row as it travels; a row that several ids use counts for each of them, though it may come from the cache.
Backward it is the id's gradient or, where the ids of a sample share one, the row's sum that it is added to.
Not counted are zeroing sums, reading them back and, for formats other than fp32, where they are kept until
they are encoded. The limit copies half of the bytes, so it reads and writes as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from persia_hpc._native import (
    Deduplicator,
    encode_rows,
    gather_pool_backward,
    gather_pool_forward,
    keep_freed_memory,
)
from persia_hpc.protocol.wire import WIRES

from .dedup import zipf_ids
from .measure import Result, Timing, in_turns

SUMMARY = "unique rows to vectors per sample, and gradients back"
EXAMPLES = "example: persia-hpc bench pool --dims 16 --wires fp32 --ids-per-sample 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 16384], help="samples")
    parser.add_argument("--features", type=int, default=26, help="features (default: 26)")
    parser.add_argument("--ids-per-sample", type=int, nargs="+", default=[1, 10], help="ids of a feature")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--wires", nargs="+", default=["fp32", "fp16"], choices=list(WIRES))
    parser.add_argument("--exponent", type=float, default=1.2, help="of the ids' Zipf law (default: 1.2)")


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Measures forward and backward of each combination, in GB/s."""
    keep_freed_memory()  # as a trainer does
    generator = np.random.default_rng(1)
    for batch in options.batches:
        for per_sample in options.ids_per_sample:
            count = batch * per_sample
            ids = [zipf_ids(count, 1_000_000, options.exponent, generator) for _ in range(options.features)]
            tables = list(range(options.features))
            dedup = Deduplicator(
                tables=tables,
                groups=[0] * options.features,
                num_buckets=[1024] * options.features,
                bounds=[[0, 1024]] * options.features,
            ).run(ids)
            bags = None if per_sample == 1 else np.arange(0, count + 1, per_sample, dtype=np.uint32)
            features = [(f * count, (f + 1) * count, "sum", bags) for f in tables]
            for dim in options.dims:
                if batch * options.features * dim * 4 > 100_000_000 and per_sample > 1:
                    continue  # as dim 64 does, only slower
                for wire in options.wires:
                    yield from _measure(options, dedup, features, batch, dim, wire, per_sample)


def _measure(
    options: argparse.Namespace,
    dedup: Any,
    features: list[Any],
    batch: int,
    dim: int,
    wire: str,
    per_sample: int,
) -> Iterator[Result]:
    num_ids, num_rows = len(dedup.indices), len(dedup.keys)
    rows = encode_rows(np.random.default_rng(2).standard_normal((num_rows, dim), np.float32), wire)
    gradient = np.random.default_rng(3).standard_normal((batch, len(features), dim), np.float32)
    row_bytes = rows.itemsize * rows.shape[1]
    touched = {
        "forward": num_ids * (dedup.indices.itemsize + row_bytes) + gradient.nbytes,
        "backward": num_ids * (dedup.indices.itemsize + dim * 4) + num_rows * row_bytes,
    }
    sources = {name: np.ones(n // 2, np.uint8) for name, n in touched.items()}
    targets = {name: np.zeros(n // 2, np.uint8) for name, n in touched.items()}
    shared: dict[str, Any] = {"features": features, "num_samples": batch, "dim": dim}
    times = in_turns(
        {
            "forward": lambda: gather_pool_forward(rows, dedup.indices, **shared),
            "forward memcpy": lambda: np.copyto(targets["forward"], sources["forward"]),
            "backward": lambda: gather_pool_backward(
                gradient, [], dedup.indices, num_rows=num_rows, wire=wire, **shared
            ),
            "backward memcpy": lambda: np.copyto(targets["backward"], sources["backward"]),
        },
        options.repeats,
    )
    for name, size in touched.items():
        case = {"pass": name, "batch": batch, "ids": per_sample, "dim": dim, "wire": wire}
        yield Result(
            case,
            "GB/s",
            rate(times[name], size),
            {"memcpy": rate(times[f"{name} memcpy"], size)},
            higher_is_better=True,
            notes={"ns/id": times[name].median * 1e9 / num_ids},
        )


def rate(timing: Timing, size: int) -> Timing:
    """Returns the GB/s at which `size` bytes are touched in the time measured."""
    median = size / timing.median / 1e9
    return Timing(median, median * timing.spread / timing.median)
