"""Ranks of right items in a whole catalogue, beside plain PyTorch in the same run.

    python benchmarks/ranking.py

Ours is what an evaluation computes of a batch of queries: exact ranks, with ties counted, and without the
items of a history each. The peers rank in float32, with all scores in memory at once and no history:
"counted" counts the scores above the right item's, "topk" finds the best 100 and looks for the right item
there. Cases run in turns, `--repeats` rounds. Printed are the median of wall and of CPU milliseconds for a
query, in brackets the least and the most, and how many ranks differ from exact ones without history.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from persia_hpc.trainer.ranking import ItemVectors


def measure(count: int, options: argparse.Namespace) -> None:
    """Prints a line for each case with `count` items."""
    random = np.random.default_rng(0)

    def unit(number: int) -> np.ndarray:
        vectors = random.normal(size=(number, options.width)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors = unit(count)
    items = ItemVectors(np.arange(count, dtype=np.uint64), vectors)
    targets = random.integers(0, count, options.queries).astype(np.uint64)
    places = torch.from_numpy(targets.astype(np.int64))[:, None]
    # Queries like their items, but not so much that all of these stand first.
    queries = unit(options.queries) + np.float32(0.3) * vectors[places[:, 0]]
    excluded = random.integers(0, count, options.queries * options.history).astype(np.uint64)
    offsets = np.arange(options.queries + 1, dtype=np.uint32) * np.uint32(options.history)
    left, right = torch.from_numpy(queries), torch.from_numpy(vectors)

    def ours() -> np.ndarray:
        return items.ranks(queries, targets, excluded, offsets)[:, 0]

    def counted() -> np.ndarray:
        scores = left @ right.T
        return (scores > scores.gather(1, places)).sum(dim=1).numpy()

    def topk() -> np.ndarray:
        found = (left @ right.T).topk(100, dim=1).indices == places
        return torch.where(found.any(dim=1), found.int().argmax(dim=1), 100).numpy()

    exact = items.ranks(queries, targets)[:, 0]
    cases: dict[str, Callable[[], np.ndarray]] = {"ours": ours, "counted": counted, "topk": topk}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    differ = dict.fromkeys(cases, 0)
    for _ in range(options.repeats):
        for name, compute in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            ranks = compute()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            expected = np.minimum(exact, 100) if name == "topk" else exact
            differ[name] = int((ranks != expected).sum())
    for name, each in times.items():
        text = f"{count:>9,} {name:<8}"
        for column in zip(*each, strict=True):
            scaled = [1000 * seconds / options.queries for seconds in column]
            shown = f"{statistics.median(scaled):.3f} [{min(scaled):.3f}, {max(scaled):.3f}]"
            text += f" {shown:>24}"
        print(f"{text}  {differ[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[3706, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--history", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'items':>9} {'case':<8} {'wall ms a query':>24} {'CPU ms a query':>24}  ranks that differ")
    for count in options.items:
        measure(count, options)


if __name__ == "__main__":
    main()
