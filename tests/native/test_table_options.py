"""Storage, eviction policies, time to live, admission, value bound and threads of the native table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc._native import encode_rows, mix
from persia_hpc.config.types import WIRE_FORMATS

from .table_model import assert_same_rows
from .table_support import KEYS, OPTIMIZERS, arguments, export, lookup, make_table, pull, pull_at, u64


def ids(*values: int) -> np.ndarray:
    return np.sort(mix(u64(values)))


@settings(max_examples=60, deadline=None)
@given(
    pulls=st.lists(
        st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), unique_by=lambda k: k[0], max_size=21),
        max_size=6,
    ),
    threads=st.sampled_from([1, 3]),
    wire=st.sampled_from([np.float32, np.float16]),
)
def test_leaving_rows_out_of_the_answer_changes_nothing_else(
    pulls: list[list[tuple[int, bool]]], threads: int, wire: Any
) -> None:
    whole, part = (make_table(**arguments(threads=threads)) for _ in range(2))
    for step, chosen in enumerate(pulls, 1):
        chosen = sorted(chosen, key=lambda entry: entry[0] >> 62)  # by bucket
        keys, wanted = [k for k, _ in chosen], np.array([want for _, want in chosen], np.uint8)
        rows, slots, epoch = pull_at(whole, keys, step, wire)
        some = np.empty((int(wanted.sum()), 3), wire)
        same = np.empty(len(keys), np.uint32)
        assert part.pull(u64(keys), step, some, same, wanted) == epoch
        np.testing.assert_array_equal(some, rows[wanted == 1])
        np.testing.assert_array_equal(same, slots)
        whole.evict(step)
        part.evict(step)
    for a, b in zip(export(whole, 4), export(part, 4), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_threads_change_nothing(optimizer: str, storage: str) -> None:
    """With so many keys that threads really run, and constant eviction."""
    random = np.random.default_rng(1)
    config = arguments(optimizer, num_buckets=16, bucket_capacity=300, storage=storage, state_storage=storage)
    tables = [make_table(**config), make_table(**config, threads=3)]
    for step in range(1, 6):
        keys = np.unique(mix(random.integers(0, 9000, 6000).astype(np.uint64)))
        grads = random.normal(size=(len(keys), 3)).astype(np.float32)
        outcomes = []
        for table in tables:
            rows, slots, epoch = pull_at(table, keys, step)
            counts = table.push_step([(keys, slots, grads, epoch), (keys, slots, grads, epoch)], step)
            outcomes.append((rows.tobytes(), counts, table.evict(step)))
        assert outcomes[0] == outcomes[1]
        assert outcomes[0][2] > 0
    for a, b in zip(export(tables[0], 16), export(tables[1], 16), strict=True):
        assert_same_rows(a, b)


@pytest.mark.parametrize("dim", [1, 8, 16, 19, 32, 64, 128])
@pytest.mark.parametrize("storage", ["fp32", "fp16", "bf16"])
def test_rows_travel_as_the_wire_format_encodes_them(storage: str, dim: int) -> None:
    """More keys than are worked on at a time, and not a multiple of it; some without a row."""
    table = make_table(**arguments("sgd", dim=dim, storage=storage, num_buckets=16, bucket_capacity=100))
    keys = ids(*range(205))
    present = keys[::2].copy()
    pull(table, present, 1)
    stored = lookup(table, keys)
    assert stored[::2].any(axis=1).all()
    assert not stored[1::2].any()
    for wire in WIRE_FORMATS:
        expected = encode_rows(stored, wire)
        seen = np.full_like(expected, 1)
        table.lookup(keys, seen)
        np.testing.assert_array_equal(seen, expected)
        pulled = np.full_like(expected[::2], 1)
        table.pull(present, 2, pulled, np.empty(len(present), np.uint32))
        np.testing.assert_array_equal(pulled, expected[::2])


@pytest.mark.parametrize("storage", ["fp16", "bf16"])
def test_narrow_storage_keeps_small_updates_on_average(storage: str) -> None:
    """Each update is a hundredth of a unit in the last place: to nearest, nothing would ever change."""
    dim, updates = 64, 400
    table = make_table(
        **arguments(
            "sgd", dim=dim, options={"lr": 1.0}, init_a=1.0, init_b=1.0, storage=storage, num_buckets=1,
            bucket_capacity=100,
        )
    )  # fmt: skip
    keys = np.sort(mix(np.arange(32, dtype=np.uint64)))
    unit = 2.0**-11 if storage == "fp16" else 2.0**-8  # just below 1
    grads = np.full((32, dim), unit / 100, np.float32)
    for step in range(1, updates + 1):
        _, slots, epoch = pull_at(table, keys, step)
        table.push(keys, slots, grads, step, epoch)
    moved = 1 - lookup(table, keys).astype(np.float64)
    # 2048 sums of 400 draws with probability 1/100: their mean is within 5 standard deviations of 4 units.
    assert abs(moved.mean() / unit - updates / 100) < 5 * np.sqrt(updates / 100 / moved.size)
    assert moved.std() > 0


def test_narrow_state_follows_the_wide_one() -> None:
    random = np.random.default_rng(2)
    shared = {"dim": 16, "num_buckets": 1, "bucket_capacity": 100}
    tables = [
        make_table(**arguments("adam", **shared)),
        make_table(**arguments("adam", **shared, storage="bf16", state_storage="bf16")),
    ]
    assert tables[1].row_bytes == 2 * 16 + 2 * 32 + 4 < tables[0].row_bytes
    keys = ids(*range(50))
    for step in range(1, 40):
        grads = random.normal(size=(50, 16)).astype(np.float32)
        for table in tables:
            _, slots, epoch = pull_at(table, keys, step)
            table.push(keys, slots, grads, step, epoch)
    wide, narrow = (lookup(table, keys) for table in tables)
    assert np.abs(wide - narrow).max() < 0.1 * np.abs(wide).max()
    assert export(tables[1], 1)[0]["steps"].tolist() == [39] * 50


def test_gradients_for_rows_that_are_gone_are_not_applied() -> None:
    """The slot of a row that was evicted is free, or has a row that started again since."""
    table = make_table(**arguments("sgd", num_buckets=1, bucket_capacity=1))
    keys = ids(1, 2, 3)
    _, slots, epoch = pull_at(table, keys, 1)
    assert table.evict(1) == 2
    assert table.push(keys, slots, np.ones((3, 3), np.float32), 1, epoch) == (1, 2, 0, 0)

    table = make_table(**arguments("sgd", num_buckets=256, bucket_capacity=100, ttl=3))
    key = mix(np.arange(1000, dtype=np.uint64))
    key = key[key >> np.uint64(56) == 40][:1]  # of a bucket that no sweep sees in these steps
    start, slots, epoch = pull_at(table, key, 1)
    for step in range(1, 9):
        table.evict(step)
    assert table.num_rows == 1
    pull_at(table, key, 9)
    assert table.push(key, slots, np.ones((1, 3), np.float32), 9, epoch) == (0, 1, 0, 0)
    np.testing.assert_array_equal(lookup(table, key), start)


def test_look_ups_see_no_expired_rows_though_they_are_not_swept() -> None:
    """Also keys that are not where they are looked for first: a full bucket has some."""
    table = make_table(**arguments("sgd", num_buckets=64, bucket_capacity=200, ttl=3))
    keys = mix(np.arange(64 * 400, dtype=np.uint64))
    keys = np.sort(keys[keys >> np.uint64(58) == 40][:200])
    pull(table, keys, 1)
    for step in range(1, 9):
        table.evict(step)
    assert table.num_rows == 200
    assert not lookup(table, keys).any()


def test_rows_unused_for_longer_than_their_time_to_live_start_again() -> None:
    """Whether or not the sweep has come by: the table with many buckets has not swept them all."""
    for buckets in (1, 256):
        table = make_table(**arguments("sgd", num_buckets=buckets, bucket_capacity=100, ttl=10))
        keys = ids(1, 2)
        start, slots, epoch = pull_at(table, keys, 1)
        table.push(keys, slots, np.ones((2, 3), np.float32), 1, epoch)
        table.evict(1)
        kept = pull(table, keys[:1], 11)[0]  # ten steps later: just in time
        assert not np.array_equal(kept, start[:1])
        table.evict(11)
        again, _ = pull(table, keys, 12)
        np.testing.assert_array_equal(again, np.stack([kept[0], start[1]]))
        for step in range(12, 90):
            table.evict(step)
        assert table.num_rows == 0
        assert not lookup(table, keys).any()
        assert table.created_rows == table.evicted_rows


def test_least_frequently_used_rows_go_and_new_ones_get_a_chance() -> None:
    table = make_table(**arguments("sgd", num_buckets=1, bucket_capacity=3, eviction="lfu"))
    a, b, c, d, e = (int(mix(u64([i]))[0]) for i in range(5))
    for _ in range(5):
        pull(table, [a], 1)
    for _ in range(3):
        pull(table, [b], 2)
    for _ in range(2):
        pull(table, [c], 3)
    pull(table, [d], 4)
    assert table.evict(4) == 1
    assert set(export(table, 1)[0]["keys"].tolist()) == {a, b, c}  # d was used once
    pull(table, [d], 5)  # starts above the row that went, so at 2 like c
    pull(table, [d], 6)
    assert table.evict(6) == 1
    assert set(export(table, 1)[0]["keys"].tolist()) == {a, b, d}
    pull(table, [e], 7)
    assert table.evict(7) == 1
    assert len(export(table, 1)[0]["keys"]) == 3


def test_keys_get_a_row_when_enough_steps_have_seen_them() -> None:
    table = make_table(**arguments("sgd", bucket_capacity=1000, admit_after=3))
    keys = ids(*range(40))
    for step in (1, 2):
        for _ in range(2):  # two batches of a step are one sighting
            rows, slots, epoch = pull_at(table, keys, step)
            assert not rows.any()
            counts = table.push(keys, slots, np.ones((40, 3), np.float32), step, epoch)
            assert counts == (0, 0, 40, 0)
        table.evict(step)
        assert table.num_rows == 0
    rows, slots, epoch = pull_at(table, keys, 3)
    assert rows.any(axis=1).all()
    assert table.push(keys, slots, np.ones((40, 3), np.float32), 3, epoch) == (40, 0, 0, 0)


def test_a_lot_decides_once_which_keys_get_a_row() -> None:
    def admitted(**changes: Any) -> np.ndarray:
        table = make_table(**arguments("sgd", bucket_capacity=10_000, admit_probability=0.25, **changes))
        for step in (1, 2):
            rows, _ = pull(table, keys, step)
            table.evict(step)
        return rows.any(axis=1)

    keys = np.sort(mix(np.arange(8000, dtype=np.uint64)))
    first = admitted()
    assert abs(first.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8000)
    np.testing.assert_array_equal(first, admitted(num_buckets=1))
    assert (first != admitted(seed=7)).any()


def test_weights_stay_within_their_bound() -> None:
    table = make_table(**arguments("sgd", value_bound=0.6))
    keys = ids(1)
    _, slots, epoch = pull_at(table, keys, 1)
    table.push(keys, slots, np.array([[100, -100, 0]], np.float32), 1, epoch)
    rows = lookup(table, keys)[0]
    assert rows[:2].tolist() == [-np.float32(0.6), np.float32(0.6)]
    assert -0.5 <= rows[2] < 0.5


def clipped(gradients: np.ndarray, most: float) -> np.ndarray:
    norms = np.linalg.norm(gradients.astype(np.float64), axis=1, keepdims=True)
    factors = np.where(norms > most, most / np.where(norms > 0, norms, 1), 1)
    return (gradients.astype(np.float64) * factors).astype(np.float32)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dim", [1, 16, 19])
@pytest.mark.parametrize("together", [False, True])
def test_a_clipped_gradient_is_that_of_numpy(optimizer: str, dim: int, together: bool) -> None:
    """Of the sum of a step's batches, or of each where they are applied one by one; before the decay."""
    rng = np.random.default_rng(dim)
    keys = np.sort(mix(np.arange(6, dtype=np.uint64)))
    options = OPTIMIZERS[optimizer] | ({} if optimizer == "ftrl" else {"weight_decay": 0.03})
    same = arguments(optimizer, dim=dim, bucket_capacity=100, options=options)
    clips, plain, loose = (make_table(**same, clip_norm=clip_norm) for clip_norm in (0.7, 0.0, 1e38))
    untouched = make_table(**same)
    for step in range(1, 6):
        batches = rng.normal(size=(2, len(keys), dim)).astype(np.float32)
        batches *= np.float32(10.0) ** rng.integers(-3, 2, (2, len(keys), 1)).astype(np.float32)
        batches[:, 0] *= np.float32(1e18)  # whose square is beyond float32
        for table in (clips, plain, loose, untouched):
            _, slots, epoch = pull_at(table, keys, step)
            if together:
                parts = [clipped(batches[0] + batches[1], 0.7)] if table is plain else list(batches)
                table.push_step([(keys, slots, part, epoch) for part in parts], step)
            else:
                for batch in batches:
                    part = clipped(batch, 0.7) if table is plain else batch
                    table.push(keys, slots, part, step, epoch)
            table.evict(step)
    np.testing.assert_allclose(lookup(clips, keys), lookup(plain, keys), rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(lookup(loose, keys), lookup(untouched, keys))
    assert not np.allclose(lookup(clips, keys), lookup(untouched, keys))


@pytest.mark.parametrize("storage", ["fp16", "bf16"])
def test_narrow_rows_are_clipped_too(storage: str) -> None:
    keys = ids(1)
    tables = [
        make_table(**arguments("sgd", storage=storage, clip_norm=clip_norm)) for clip_norm in (0.5, 0.0)
    ]
    for table, gradient in zip(tables, ([[300, -400, 0]], [[0.3, -0.4, 0]]), strict=True):
        _, slots, epoch = pull_at(table, keys, 1)
        table.push(keys, slots, np.array(gradient, np.float32), 1, epoch)
    np.testing.assert_array_equal(*(lookup(table, keys) for table in tables))
