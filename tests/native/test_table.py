"""The native table against a model of it, and against itself split or reloaded."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import mix

from .table_model import ModelTable, assert_same_rows, bucket_of
from .table_support import KEYS, OPTIMIZERS, arguments, export, lookup, make_table, pull, u64

# ---- random histories

MODELLED = ("sgd", "adagrad", "rowwise_adagrad", "adam")

key_sets = st.lists(st.sampled_from(KEYS), max_size=12, unique=True).map(sorted)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("pull"), key_sets, st.integers(0, 2)),
        st.tuples(st.just("push"), st.integers(0, 5), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("push_step"), st.integers(0, 5), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("evict"), st.none(), st.none()),
        st.tuples(st.just("lookup"), key_sets, st.none()),
    ),
    max_size=40,
)


def gradients(seed: int, count: int, dim: int, dtype: Any) -> np.ndarray:
    """Random, now and then with an element that is not finite or so large that two of them are not."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, dim)).astype(dtype)
    odd = random.random(count) < 0.2
    values[odd, 0] = random.choice(np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).max, 0]), odd.sum())
    return values


class Split:
    """Several shards that act as one table."""

    def __init__(self, config: dict[str, Any], bounds: list[int], threads: int = 1) -> None:
        self.num_buckets = config["num_buckets"]
        self.bounds = bounds
        self.shards = [
            make_table(**{**config, "first_bucket": first, "end_bucket": end, "threads": threads})
            for first, end in itertools.pairwise(bounds)
        ]

    def cuts(self, keys: list[int]) -> list[slice]:
        buckets = [bucket_of(key, self.num_buckets) for key in keys]
        at = np.searchsorted(buckets, self.bounds)
        return [slice(a, b) for a, b in itertools.pairwise(at)]

    def pull(self, keys: list[int], step: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [pull(t, keys[cut], step) for t, cut in zip(self.shards, self.cuts(keys), strict=True)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def push(
        self, keys: list[int], slots: np.ndarray, grads: np.ndarray, step: int, epoch: int
    ) -> tuple[int, ...]:
        counts = [
            t.push(u64(keys[cut]), slots[cut], grads[cut], step, epoch)
            for t, cut in zip(self.shards, self.cuts(keys), strict=True)
        ]
        return tuple(np.sum(counts, axis=0))

    def push_step(
        self, batches: list[tuple[list[int], np.ndarray, np.ndarray, int]], step: int
    ) -> tuple[int, ...]:
        counts = []
        for index, table in enumerate(self.shards):
            mine = [(u64(k[c]), s[c], g[c], e) for k, s, g, e in batches for c in [self.cuts(k)[index]]]
            counts.append(table.push_step(mine, step))
        return tuple(np.sum(counts, axis=0))

    def lookup(self, keys: list[int]) -> np.ndarray:
        return np.concatenate(
            [lookup(t, keys[cut]) for t, cut in zip(self.shards, self.cuts(keys), strict=True)]
        )

    def evict(self, step: int) -> int:
        return sum(t.evict(step) for t in self.shards)

    def export(self) -> list[dict[str, np.ndarray]]:
        bounds = zip(self.shards, self.bounds, self.bounds[1:], strict=False)
        return [t.export_bucket(bucket) for t, first, end in bounds for bucket in range(first, end)]


@settings(max_examples=120, deadline=None)
@given(
    optimizer=st.sampled_from(MODELLED),
    log2_buckets=st.integers(0, 3),
    cut=st.integers(0, 8),
    dim=st.sampled_from([1, 3, 8, 11]),
    capacity=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float16]),
    history=operations,
)
def test_any_history_gives_what_the_model_gives(
    optimizer: str, log2_buckets: int, cut: int, dim: int, capacity: int, dtype: Any, history: list[Any]
) -> None:
    """Values, state, recency and counts; on one shard, on two, and with threads. Capacities are so small
    that most rows go and slots are used again at once: a gradient on another key, or on a re-created row,
    would change a value.
    """
    num_buckets = 2**log2_buckets
    config = arguments(optimizer, dim=dim, num_buckets=num_buckets, bucket_capacity=capacity)
    model = ModelTable(config)
    cut = min(cut, num_buckets)
    whole = [0, num_buckets]
    tables = [Split(config, whole), Split(config, [0, cut, num_buckets]), Split(config, whole, threads=3)]
    step = last_step = 1
    in_flight: list[tuple[int, list[int], list[np.ndarray], int]] = []
    pulled = ended = 0
    for name, what, detail in history:
        if name == "pull":
            at = step + detail  # pulls of several steps between two evictions, in any order
            last_step = max(last_step, at)
            expected = model.pull(what, at)
            results = [table.pull(what, at) for table in tables]
            assert all(rows.tobytes() == expected.tobytes() for rows, _ in results)
            in_flight.append((at, what, [slots for _, slots in results], model.epoch))
            pulled += len(what)
        elif name == "push" and in_flight:
            at, keys, slots, epoch = in_flight.pop(what % len(in_flight))
            grads = gradients(detail, len(keys), dim, dtype)
            counts = model.push(keys, grads, epoch)
            for table, s in zip(tables, slots, strict=True):
                assert table.push(keys, s, grads, at, epoch) == counts
            ended += sum(counts)
        elif name == "push_step" and in_flight:
            at = in_flight[what % len(in_flight)][0]
            pulls = [entry for entry in in_flight if entry[0] == at]
            in_flight = [entry for entry in in_flight if entry[0] != at]
            grads_of = [
                gradients(detail + i, len(keys), dim, dtype) for i, (_, keys, _, _) in enumerate(pulls)
            ]
            counts = model.push_step([(p[1], g, p[3]) for p, g in zip(pulls, grads_of, strict=True)])
            for index, table in enumerate(tables):
                batches = [(p[1], p[2][index], g, p[3]) for p, g in zip(pulls, grads_of, strict=True)]
                assert table.push_step(batches, at) == counts
            ended += sum(counts)
        elif name == "evict":
            count = model.evict()
            assert [table.evict(step) for table in tables] == [count] * 3
            step = last_step + 1
        elif name == "lookup":
            expected = model.lookup(what)
            assert all(table.lookup(what).tobytes() == expected.tobytes() for table in tables)
        one = tables[0].shards[0]
        assert (one.num_rows, one.created_rows, one.evicted_rows) == (
            len(model.rows),
            model.created,
            model.evicted,
        )
    assert pulled == ended + sum(len(keys) for _, keys, _, _ in in_flight)
    for table in tables:
        for bucket, rows in enumerate(table.export()):
            assert_same_rows(rows, model.export_bucket(bucket))


@pytest.mark.parametrize("capacity", [100, 700])
def test_eviction_is_least_recently_used_whatever_the_scale(capacity: int) -> None:
    """More rows than the list of candidates holds, steps out of order, old rows coming from elsewhere."""
    random = np.random.default_rng(capacity)
    table = make_table(**arguments("sgd", num_buckets=1, bucket_capacity=capacity))
    stamps: dict[int, int] = {}
    step = 1
    for turn in range(150):
        for _ in range(3):
            at = max(1, step + int(random.integers(-30, 3)))  # late ones too, as of asynchronous workers
            keys = np.unique(mix(random.zipf(1.3, 60).astype(np.uint64) % np.uint64(5 * capacity)))
            pull(table, keys, at)
            for key in keys.tolist():
                stamps[key] = max(at, stamps.get(key, 0))
        if turn % 10 == 9:
            chosen = [*random.integers(0, 2**63, 10), *random.choice(list(stamps), 10, replace=False)]
            old = {int(key): int(random.integers(1, step + 1)) for key in chosen}
            rows = {"keys": u64(list(old)), "stamps": np.array(list(old.values()), np.uint32)}
            rows |= {"rows": np.zeros((20, 3), np.float32), "state": np.zeros((20, 0), np.float32)}
            table.import_rows(rows)
            stamps |= old
        step += 3
        surplus = max(0, len(stamps) - capacity)
        for key in sorted(stamps, key=lambda k: (stamps[k], k))[:surplus]:
            del stamps[key]
        assert table.evict(step) == surplus
        exported = table.export_bucket(0)
        assert dict(zip(exported["keys"].tolist(), exported["stamps"].tolist(), strict=True)) == stamps
    assert table.evicted_rows > capacity


@pytest.mark.parametrize("how", ["touched", "restored", "created"])
def test_rows_used_late_are_evicted_in_their_turn(how: str) -> None:
    """A row whose new recency lies among rows already picked as the next to go."""
    keys = np.sort(mix(np.arange(1, 211, dtype=np.uint64))).tolist()
    table = make_table(**arguments("sgd", num_buckets=1, bucket_capacity=100))
    stamps = dict(zip(keys[:200], range(1, 201), strict=True))
    for key, step in stamps.items():
        pull(table, [key], step)
    assert table.evict(200) == 100
    late = {"touched": keys[100], "restored": keys[104], "created": keys[200]}[how]
    stamps[late] = 110
    if how == "restored":
        row = {"keys": u64([late]), "rows": np.ones((1, 3), np.float32), "state": np.ones((1, 0), np.float32)}
        table.import_rows({**row, "stamps": np.array([110], np.uint32)})
    else:
        pull(table, [late], 110)
    pull(table, keys[201:], 300)
    stamps |= dict.fromkeys(keys[201:], 300)
    table.evict(300)
    kept = sorted(stamps, key=lambda key: (stamps[key], key))[-100:]
    assert table.export_bucket(0)["keys"].tolist() == sorted(kept)


def test_sums_of_finite_gradients_that_overflow_are_not_applied() -> None:
    table = make_table(**arguments("sgd"))
    keys = u64([4, 5])
    before, slots = pull(table, keys, 1)
    huge = np.array([[3e38, 0, 0], [1, 1, 1]], np.float32)
    assert table.push_step([(keys, slots, huge, 0)] * 2, 1) == (2, 0, 0, 2)
    after = lookup(table, keys)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1] - np.float32(0.1) * np.float32(2))


def test_gradients_never_land_on_a_row_that_took_over_a_slot() -> None:
    """Also where steps don't tell: a late worker creates the new row for the very step of the gradient."""
    table = make_table(**arguments("sgd", num_buckets=1, bucket_capacity=1))
    _, slots = pull(table, [KEYS[5]], 1)
    pull(table, [KEYS[6]], 2)
    assert table.evict(2) == 1
    before, reused = pull(table, [KEYS[7]], 1)
    assert reused[0] == slots[0]
    assert table.push(u64([KEYS[5]]), slots, np.ones((1, 3), np.float32), 1, 0) == (0, 1, 0, 0)
    np.testing.assert_array_equal(lookup(table, [KEYS[7]]), before)


# ---- evaluation


@settings(max_examples=30, deadline=None)
@given(known=key_sets, asked=key_sets)
def test_lookup_changes_nothing(known: list[int], asked: list[int]) -> None:
    table, twin = (make_table(**arguments(bucket_capacity=1)) for _ in range(2))
    for step, key in enumerate(known, start=1):
        for each in (table, twin):
            pull(each, [key], step)
    before = export(table, 4)
    rows = lookup(table, asked)
    for a, b in zip(before, export(table, 4), strict=True):
        assert_same_rows(a, b)
    unseen = [key not in known for key in asked]
    assert not rows[unseen].any()
    assert table.num_rows == table.created_rows == len(known)
    assert table.evict(99) == twin.evict(99)
    for a, b in zip(export(table, 4), export(twin, 4), strict=True):
        assert_same_rows(a, b)


# ---- checkpoints


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_reloaded_tables_go_on_bit_for_bit(optimizer: str) -> None:
    """On another number of shards, with rows going in another order than they came."""
    random = np.random.default_rng(3)
    config = arguments(optimizer, num_buckets=8, bucket_capacity=5, dim=4)

    def train(tables: list[Split], first: int, last: int) -> None:
        for step in range(first, last):
            keys = np.unique(mix(random.integers(0, 100, 30).astype(np.uint64))).tolist()
            grads = random.normal(size=(len(keys), 4)).astype(np.float32)
            pulled = [table.pull(keys, step) for table in tables]
            counts = [t.push(keys, s, grads, step, step) for t, (_, s) in zip(tables, pulled, strict=True)]
            assert len({rows.tobytes() for rows, _ in pulled}) == 1
            assert counts == [(len(keys), 0, 0, 0)] * len(tables)
            assert len({table.evict(step) for table in tables}) == 1

    original = Split(config, [0, 8])
    train([original], 1, 20)
    reloaded = Split(config, [0, 3, 8])
    for shard, (first, end) in zip(reloaded.shards, [(0, 3), (3, 8)], strict=True):
        buckets = [original.export()[b] for b in range(first, end)]
        together = {name: np.concatenate([b[name] for b in buckets]) for name in buckets[0]}
        order = random.permutation(len(together["keys"]))
        shard.import_rows({name: np.ascontiguousarray(array[order]) for name, array in together.items()})
    assert sum(t.num_rows for t in reloaded.shards) == original.shards[0].num_rows
    train([original, reloaded], 20, 40)
    for a, b in zip(original.export(), reloaded.export(), strict=True):
        assert_same_rows(a, b)


def test_import_replaces_rows_and_may_exceed_the_capacity_until_eviction() -> None:
    source = make_table(**arguments(seed=1, num_buckets=1, bucket_capacity=10))
    pull(source, KEYS[:6], 4)
    table = make_table(**arguments(seed=2, num_buckets=1, bucket_capacity=3))
    _, slots = pull(table, KEYS[:1], 2)
    table.import_rows(source.export_bucket(0))
    assert_same_rows(table.export_bucket(0), source.export_bucket(0))
    assert (table.num_rows, table.created_rows, table.imported_rows) == (6, 1, 5)
    # A gradient for what was pulled before is not for the restored row.
    assert table.push(u64(KEYS[:1]), slots, np.ones((1, 3), np.float32), 2, 0) == (0, 1, 0, 0)
    assert table.evict(4) == 3
    assert table.export_bucket(0)["keys"].tolist() == sorted(KEYS[:6])[3:]
