"""How many rows must come back from a disk tier: policies simulated on ids like W0's, a step at a time.

    python -m benchmarks.tier_policies [--factor 8] [--lag 4] [--queue 2]

One table: 262,144 ids by Zipf(1.05) from a million, in batches of 2048, in two passes; memory for a part of
the different ids. Rows whose step isn't applied stay (`lag` steps), with `queue` also those that the pulls
of so many later steps need. Prints for each policy how many rows a sample of 26 such tables come back in
the first and in the second pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

VOCABULARY, SAMPLES, BATCH, TABLES, NEVER = 1_000_000, 262_144, 2048, 26, 1 << 20


class Rows:
    """What is known of each row: whether it is in memory or on disk, and when it was used."""

    def __init__(self, ids: np.ndarray) -> None:
        count = int(ids.max()) + 1
        self.in_memory, self.on_disk = np.zeros(count, bool), np.zeros(count, bool)
        self.last, self.before = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.came, self.uses = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.next = np.full(count, NEVER)
        self.in_all = np.bincount(ids)

    def use(self, ids: np.ndarray, step: int, later: np.ndarray) -> int:
        """Notes that a step uses rows, and when the next one will; returns how many come back from disk."""
        missing = ids[~self.in_memory[ids]]
        back = int(self.on_disk[missing].sum())
        self.came[missing] = step
        self.in_memory[ids], self.on_disk[ids] = True, False
        self.before[ids], self.last[ids], self.next[ids] = self.last[ids], step, later
        self.uses[ids] += 1
        return back

    def send(self, ids: np.ndarray) -> None:
        self.in_memory[ids], self.on_disk[ids] = False, True


# The rows with the least go.
POLICIES: dict[str, Callable[[Rows, np.ndarray], np.ndarray]] = {
    "last use": lambda rows, ids: rows.last[ids],
    "use before the last": lambda rows, ids: rows.before[ids],
    "number of uses": lambda rows, ids: rows.uses[ids] + 1e-6 * rows.last[ids],
    "rows of one step first": lambda rows, ids: rows.last[ids],
    "uses in all: best fixed choice": lambda rows, ids: rows.in_all[ids],
    "next use: Belady": lambda rows, ids: -rows.next[ids],
}
ONCE_SHARE = 8  # "rows of one step first", until they are such a part of the rows in memory


def least(ids: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return ids[np.argpartition(values, count - 1)[:count]] if 0 < count < len(ids) else ids[:count]


def simulate(
    policy: str, batches: list[np.ndarray], rows: Rows, capacity: int, lag: int, queue: int
) -> list[float]:
    """Returns the rows that come back a sample in each half of the batches."""
    upcoming: list[np.ndarray] = []
    following = np.full(len(rows.last), NEVER)
    for step in range(len(batches), 0, -1):
        upcoming.append(following[batches[step - 1]].copy())
        following[batches[step - 1]] = step
    upcoming.reverse()
    back, half = [0, 0], len(batches) // 2
    needed = np.zeros(len(rows.last), np.int64)
    for step, ids in enumerate(batches, 1):
        for ahead in range(1, min(queue, len(batches) - step) + 1):
            needed[batches[step + ahead - 1]] = step + ahead
        back[step > half] += rows.use(ids, step, upcoming[step - 1])
        over = int(rows.in_memory.sum()) - capacity
        may_go = np.flatnonzero(rows.in_memory & (rows.last <= step - lag) & (needed <= step))
        over = min(over, len(may_go))
        if over <= 0:
            continue
        if policy == "rows of one step first":
            once = may_go[rows.last[may_go] == rows.came[may_go]]
            beyond = int((rows.in_memory & (rows.last == rows.came)).sum()) - capacity // ONCE_SHARE
            first = least(once, rows.last[once], max(0, min(over, beyond, len(once))))
            rows.send(first)
            may_go, over = may_go[rows.in_memory[may_go]], over - len(first)
        rows.send(least(may_go, POLICIES[policy](rows, may_go), over))
    return [count * TABLES / (half * BATCH) for count in back]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factor", type=int, default=8, help="memory for such a part of the rows")
    parser.add_argument("--lag", type=int, default=4, help="steps after which a pull's step is applied")
    parser.add_argument("--queue", type=int, default=0, help="later steps whose rows stay")
    options = parser.parse_args()
    random = np.random.default_rng(1)
    weights = np.cumsum(np.arange(1, VOCABULARY + 1, dtype=np.float64) ** -1.05)
    _, ids = np.unique(np.searchsorted(weights / weights[-1], random.random(SAMPLES)), return_inverse=True)
    passes = [np.split(random.permutation(ids), SAMPLES // BATCH) for _ in range(2)]
    batches = [np.unique(batch) for one in passes for batch in one]
    capacity = max((int(ids.max()) + 1) // options.factor, BATCH + 64)
    each = np.mean([len(batch) for batch in batches])
    print(f"{int(ids.max()) + 1:,} rows, memory for {capacity:,}; {each:,.0f} different ids a batch")
    for policy in POLICIES:
        first, second = simulate(policy, batches, Rows(ids), capacity, options.lag, options.queue)
        print(f"{policy:32} {first:5.2f} {second:5.2f}")


if __name__ == "__main__":
    main()
