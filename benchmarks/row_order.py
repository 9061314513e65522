"""What it would bring to place a table's rows by bucket: tables filled in several orders.

    python -m benchmarks.row_order [--rows 10000000] [--call-keys 65536] [--orders arrival bucket key]

A table gives places in the order in which rows come, so filling one in a chosen order shows what a table
would do that gave such places itself. All tables are in one process and measured in turns, in processor time.

arrival: as ids come, 4096 a call.
groups:ROWS: as if places came in stretches of so many rows, each for a group of neighbouring buckets, and
groups were halved whenever the table has doubled, so that each has 16 to 32 stretches.
runs:ROWS: as if a run of memory had so many rows of each bucket, then the next run.
bucket: bucket by bucket, in each as ids come. key: the same, in each by key.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np

from persia_hpc._native import Table, TableConfig, mix

Keys = np.ndarray
BUCKETS, AT_ONCE, KEYS = 1024, 4096, 1 << 21
GROUP = 32  # stretches of a group when groups are halved


def bucket_of(keys: Keys) -> Keys:
    """The bucket of each key."""
    return (keys >> np.uint64(54)).astype(np.int64)


def placed(order: str, keys: Keys) -> tuple[Keys, list[int]]:
    """The keys in the order of their rows' places, and where calls end that may create them so."""
    name, _, size = order.partition(":")
    buckets = bucket_of(keys)
    if name == "arrival":
        cuts = [*range(0, len(keys), AT_ONCE), len(keys)]
        parts = [np.sort(keys[begin:end]) for begin, end in pairwise(cuts)]
        return np.concatenate(parts), cuts
    if name == "groups":
        return in_groups(keys, buckets, int(size))
    by_bucket = np.sort(keys) if name == "key" else keys[np.argsort(buckets, kind="stable")]
    if name != "runs":
        return by_bucket, [*range(0, len(keys), AT_ONCE), len(keys)]
    buckets = bucket_of(by_bucket)
    rank = np.arange(len(keys)) - np.searchsorted(buckets, np.arange(BUCKETS))[buckets]
    run = rank // int(size)
    in_runs = np.argsort(run, kind="stable")
    return by_bucket[in_runs], [0, *ends_of(run[in_runs])]


def in_groups(keys: Keys, buckets: Keys, stretch: int) -> tuple[Keys, list[int]]:
    """The order of `groups:`, and a call for each stretch."""
    parts, cuts, begin, groups = [], [0], 0, 1
    while begin < len(keys):
        end = len(keys) if groups == BUCKETS else min(len(keys), GROUP * stretch * groups)
        group = buckets[begin:end] * groups // BUCKETS
        by_group = np.argsort(group, kind="stable")
        rank = np.arange(end - begin) - np.searchsorted(group[by_group], np.arange(groups))[group[by_group]]
        number = group[by_group] * len(keys) + rank // stretch
        is_first = np.append(True, number[1:] != number[:-1])
        began = by_group[is_first][np.cumsum(is_first) - 1]  # when the stretch of each row was given
        order = np.lexsort((buckets[begin:end][by_group], began))  # a call has its keys by bucket
        parts.append(keys[begin + by_group[order]])
        cuts += [begin + last for last in ends_of(began[order])]
        begin, groups = end, 2 * groups
    return np.concatenate(parts), cuts


def ends_of(runs: Keys) -> list[int]:
    """Where each run of equal numbers ends."""
    return [int(i) for i in np.flatnonzero(np.append(runs[1:] != runs[:-1], True)) + 1]


class Filled:
    """A table with its rows in one order, and the times of its calls."""

    def __init__(self, order: str, keys: Keys, dim: int) -> None:
        """Fills the table."""
        self.step, self.order = 1, order
        self.times: dict[str, list[float]] = {}
        capacity = int(len(keys) * 1.05) // BUCKETS + 64
        self.table = Table(
            TableConfig(
                dim=dim,
                optimizer="rowwise_adagrad",
                options={"lr": 0.05},
                init="uniform",
                init_a=-0.01,
                init_b=0.01,
                seed=1,
                num_buckets=BUCKETS,
                first_bucket=0,
                end_bucket=BUCKETS,
                bucket_capacity=capacity,
            )
        )
        keys, cuts = placed(order, keys)
        for begin, end in pairwise(cuts):
            out = np.empty((end - begin, dim), np.float32)
            self.table.pull(keys[begin:end], 1, out, np.empty(end - begin, np.uint32))

    def turn(self, name: str, batches: list[Keys], out: np.ndarray, gradients: np.ndarray) -> None:
        """Pulls and pushes all batches once."""
        self.step += 1
        count = sum(map(len, batches))
        slots = [np.zeros(len(keys), np.uint32) for keys in batches]
        begin = time.process_time()
        pairs = list(zip(batches, slots, strict=True))
        epochs = [self.table.pull(keys, self.step, out[: len(keys)], into) for keys, into in pairs]
        between = time.process_time()
        for (keys, into), epoch in zip(pairs, epochs, strict=True):
            self.table.push(keys, into, gradients[: len(keys)], self.step, epoch)
        ends = {"pull": between - begin, "push": time.process_time() - between}
        for op, seconds in ends.items():
            self.times.setdefault(f"{op} {name}", []).append(seconds / count * 1e9)


def main() -> None:
    """Prints ns a key, 25 % of the turns, for each order and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--call-keys", type=int, default=65536)
    parser.add_argument("--turns", type=int, default=12)
    orders = ["arrival", "groups:1024", "runs:512", "bucket", "key"]
    parser.add_argument("--orders", nargs="+", default=orders)
    options = parser.parse_args()
    keys = mix(np.arange(options.rows, dtype=np.uint64))
    tables = [Filled(order, keys, options.dim) for order in options.orders]
    generator = np.random.default_rng(1)
    gradients = generator.normal(0, 1e-3, (options.call_keys, options.dim)).astype(np.float32)
    out = np.zeros_like(gradients)
    drawn = [
        np.unique(keys[generator.integers(options.rows, size=options.call_keys)])
        for _ in range(max(1, KEYS // options.call_keys))
    ]
    calls = {"by key": drawn, "by first use": []}  # in each bucket; dedup gives the latter
    for batch in drawn:
        used = generator.permutation(batch)
        calls["by first use"].append(used[np.argsort(bucket_of(used), kind="stable")])
    for turn in range(options.turns):
        for name, batches in calls.items():
            for table in tables[:: 1 if turn % 2 else -1]:
                table.turn(name, batches, out, gradients)
    for table in tables:
        quarter = {name: np.percentile(times, 25) for name, times in table.times.items()}
        print(f"{table.order:12}", *(f"{name}: {ns:.1f}" for name, ns in quarter.items()), sep="  ")


if __name__ == "__main__":
    main()
