"""Number formats, keys, memory, and what the table refuses."""

from __future__ import annotations

import ctypes
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persia_hpc._native import Table, TableConfig, mix, row_bytes, table_bytes, unmix

from .table_model import assert_same_rows
from .table_support import OPTIMIZERS, arguments, make_table, pull, u64

# ---- fp16, keys


def test_fp16_rows_are_what_numpy_makes_of_them() -> None:
    table = make_table(
        **arguments("sgd", dim=21, init="normal", init_a=0.0, init_b=3e4, bucket_capacity=1000)
    )
    keys = np.sort(mix(np.arange(300, dtype=np.uint64)))
    exact, _ = pull(table, keys, 1)
    with np.errstate(over="ignore"):
        expected = exact.astype(np.float16)
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(pull(table, keys, 2, np.float16)[0], expected)
    out = np.empty_like(expected)
    table.lookup(keys, out)
    np.testing.assert_array_equal(out, expected)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50))
def test_unmix_inverts_mix(ids: list[int]) -> None:
    assert unmix(mix(u64(ids))).tolist() == ids
    assert mix(unmix(u64(ids))).tolist() == ids


# ---- memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_counts_what_is_held_and_little_is_wasted() -> None:
    before = resident_bytes()
    table = make_table(**arguments("adagrad", dim=16, num_buckets=256, bucket_capacity=4096))
    small = table.memory_bytes
    assert small < 1 << 16  # nothing is taken before rows come, but the first lines of the index

    rows, slots = np.empty((20_000, 16), np.float32), np.empty(20_000, np.uint32)
    for begin in range(0, 400_000, 20_000):
        table.pull(np.sort(mix(np.arange(begin, begin + 20_000, dtype=np.uint64))), 1, rows, slots)
    needed = table.num_rows * (table.row_bytes + 16 + 8)
    assert needed < table.memory_bytes < 1.5 * needed
    assert resident_bytes() - before < table.memory_bytes + (8 << 20)


SHAPES = [
    # how many tables, rows of each, what they are
    (300, 536, {"num_buckets": 8, "bucket_capacity": 67}),  # 80 KiB of 152 bytes
    (300, 1, {"num_buckets": 8, "bucket_capacity": 67}),
    (300, 0, {"num_buckets": 8, "bucket_capacity": 67}),
    (100, 5_000, {"num_buckets": 64, "bucket_capacity": 100, "optimizer": "sgd"}),
    (20, 20_000, {"num_buckets": 256, "bucket_capacity": 200, "optimizer": "adam", "storage": "bf16"}),
    (3, 100_000, {"num_buckets": 1024, "bucket_capacity": 10_000, "optimizer": "rowwise_adagrad"}),
    (3, 100_000, {"num_buckets": 1024, "bucket_capacity": 100, "threads": 3}),
]


def bytes_of_tables(count: int, num_rows: int, shape: dict[str, Any]) -> tuple[float, int, int]:
    """What a table takes, is said to take, and says that it takes."""
    config = TableConfig(**arguments(**{"optimizer": "adagrad", "dim": 16, **shape}))
    rows, slots = np.empty((4096, 16), np.float32), np.empty(4096, np.uint32)

    def filled() -> Table:
        table = Table(config)
        for begin in range(0, num_rows, 4096):
            ids = np.arange(begin, min(begin + 4096, num_rows), dtype=np.uint64)
            table.pull(np.sort(mix(ids)), 1, rows[: len(ids)], slots[: len(ids)])
            table.evict(1)
        return table

    filled()  # pages of code and of what the process makes once are there then
    # Or small tables would lie in pages that freed ones have left resident, and seem to take less.
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    tables = [filled() for _ in range(count)]
    measured = (resident_bytes() - before) / count
    return measured, table_bytes(config, tables[0].num_rows), tables[0].memory_bytes


@pytest.mark.parametrize(("count", "num_rows", "shape"), SHAPES)
def test_memory_of_a_table_can_be_told_before_it_is_made(
    count: int, num_rows: int, shape: dict[str, Any]
) -> None:
    """In a process of its own: what other tests have freed would be used again."""
    with get_context("spawn").Pool(1) as process:
        measured, predicted, said = process.apply(bytes_of_tables, (count, num_rows, shape))
    assert predicted == pytest.approx(measured, rel=0.15, abs=3000)
    assert predicted < 1.2 * said


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("storages", [("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp16")])
def test_row_bytes_are_those_of_a_table(optimizer: str, storages: tuple[str, str]) -> None:
    storage, state_storage = storages
    table = make_table(**arguments(optimizer, dim=6, storage=storage, state_storage=state_storage))
    row = row_bytes(optimizer, 6, storage=storage, state_storage=state_storage)
    width = {"fp32": 4, "fp16": 2, "bf16": 2}
    updates = 4 if optimizer in ("adam", "adamw") else 0
    assert row.weights == 6 * width[storage]
    assert row.state == table.state_width * width[state_storage] + updates
    assert 0 <= table.row_bytes - row.weights - row.state < 4  # a row's state begins at a multiple of 4
    assert 22 < row.beside < 28


def test_row_bytes_of_an_unknown_optimizer_or_format_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer: got 'lamb', expected 'sgd'"):
        row_bytes("lamb", 16)
    with pytest.raises(ValueError, match="storage: got 'fp8'"):
        row_bytes("sgd", 16, state_storage="fp8")


def test_memory_stays_while_rows_come_and_go() -> None:
    table = make_table(**arguments("sgd", dim=16, num_buckets=16, bucket_capacity=200))
    held = []
    for step in range(1, 61):
        pull(table, np.sort(mix(np.arange(step * 1000, step * 1000 + 1000, dtype=np.uint64))), step)
        table.evict(step)
        held.append(table.memory_bytes)
    assert table.num_rows == 16 * 200
    assert held[-1] <= held[20] * 1.05


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "sgd", "options": {"lr": 1, "momentum": 0.9}},
            "no option 'momentum'; its options are lr, weight_decay",
        ),
        ({"optimizer": "adagrad", "options": {"lr": 1, "beta1": 0.9}}, "eps, initial_accumulator_value, lr"),
        ({"optimizer": "sgd", "options": {}}, "'sgd' needs the option 'lr'"),
        ({"optimizer": "adam", "options": {"lr": -1}}, "'lr' is -1"),
        ({"optimizer": "adam", "options": {"lr": 1, "beta2": 1}}, "'beta2' is 1.*less than 1"),
        ({"optimizer": "adam", "options": {"lr": 1, "eps": 0}}, "'eps' is 0"),
        ({"optimizer": "lamb", "options": {"lr": 1}}, "got 'lamb', expected 'sgd'"),
        ({"value_bound": -1.0}, "value_bound: got -1"),
        ({"clip_norm": float("nan")}, "clip_norm: got nan"),
        ({"storage": "fp8"}, "storage: got 'fp8', expected 'fp32', 'fp16' or 'bf16'"),
        ({"eviction": "fifo"}, "eviction: got 'fifo', expected 'lru' or 'lfu'"),
        ({"eviction": "lfu", "ttl": 3}, "ttl: got 3 with eviction 'lfu'"),
        ({"admit_after": 0}, "after = 0, expected 1 to 255"),
        ({"admit_probability": 0.0}, "probability = 0.*expected more than 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"init": "zeros"}, "got 'zeros', expected 'uniform' or 'normal'"),
        ({"init_a": 1.0, "init_b": 0.0}, "low must not exceed high"),
        ({"init": "normal", "init_b": -1.0}, "standard deviation"),
        ({"num_buckets": 6}, "num_buckets: got 6, expected a power of two"),
        ({"first_bucket": 3, "end_bucket": 2}, r"got \[3, 2\)"),
        ({"end_bucket": 5}, r"range within \[0, 4\)"),
        ({"dim": 0}, "dim: got 0"),
        ({"bucket_capacity": 0}, "bucket_capacity: got 0"),
        ({"bucket_rows": 2}, "has no 'bucket_rows'; it has dim, optimizer, .*threads"),
        ({"dim": "16"}, "dim: got '16', expected a value like 0"),
        ({"dim": -1}, "dim: got -1"),
        ({"seed": 2**64}, f"seed: got {2**64}"),
        ({"options": {"lr": "fast"}}, "options: got .*'fast'"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_table(**{**arguments(), **changes})


def test_a_configuration_tells_what_it_was_given_and_needs_all_but_the_options() -> None:
    given = {**arguments("adam"), "ttl": 3, "admit_after": 2, "admit_probability": 0.5, "storage": "bf16"}
    config = TableConfig(**given)
    assert {name: getattr(config, name) for name in given} == given
    assert (config.threads, config.eviction, config.value_bound) == (1, "lru", 0)
    for name in arguments():
        with pytest.raises(ValueError, match=f"needs '{name}'"):
            TableConfig(**{k: v for k, v in arguments().items() if k != name})


def test_bad_arrays_are_refused_by_name() -> None:
    table = make_table(**arguments())
    keys, rows, slots = u64([1, 2]), np.zeros((2, 3), np.float32), np.zeros(2, np.uint32)
    read_only = rows.copy()
    read_only.flags.writeable = False
    for out, got in [
        (np.zeros((2, 4), np.float32), r"shape \[2, 3\], got float32 \[2, 4\]"),
        (np.zeros((3, 3), np.float32), r"got float32 \[3, 3\]"),
        (np.zeros((2, 3)), r"float32 or float16.*got float64 \[2, 3\]"),
        (np.zeros((2, 3), ">f4"), "got >f4"),
        (np.zeros((2, 6), np.float32)[:, ::2], "not C-contiguous"),
        (read_only, "read-only"),
        (np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3), "misaligned"),
    ]:
        with pytest.raises(ValueError, match=f"^out: expected a C-contiguous.*{got}"):
            table.pull(keys, 1, out, slots)
    for bad in (keys.astype(np.int64), keys.reshape(1, 2), keys.astype(np.uint32)):
        with pytest.raises(ValueError, match=r"^keys: expected"):
            table.pull(bad, 1, rows, slots)
    for bad in (slots.astype(np.int32), slots[:1]):
        with pytest.raises(ValueError, match=r"^slots: expected"):
            table.pull(keys, 1, rows, bad)
    for step in (-1, 2**32 - 1, 2**40):
        with pytest.raises(ValueError, match=r"^step: got"):
            table.pull(keys, step, rows, slots)
    with pytest.raises(ValueError, match=r"^batches\[1\]: grads: expected"):
        table.push_step([(u64([]), slots[:0], rows[:0], 0), (keys, slots, rows[:1], 0)], 1)
    assert table.num_rows == 0


def test_foreign_keys_and_slots_are_refused_before_anything_changes() -> None:
    table = make_table(**arguments("sgd", first_bucket=1, end_bucket=3))
    mine, foreign = 1 << 62, 3 << 62
    rows, slots = np.zeros((2, 3), np.float32), np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match=rf"keys\[1\] = {foreign} is of bucket 3, expected buckets \[1, 3\)"):
        table.pull(u64([mine, foreign]), 1, rows, slots)
    assert table.num_rows == 0
    _, slots = pull(table, [mine], 1)
    before = table.export_bucket(1)
    with pytest.raises(ValueError, match=r"slots\[1\] = 77 was never given"):
        table.push(
            u64([mine, mine + 1]), np.array([slots[0], 77], np.uint32), np.ones((2, 3), np.float32), 1, 0
        )
    with pytest.raises(ValueError, match=r"bucket: got 0, expected one of \[1, 3\)"):
        table.export_bucket(0)
    good = {**before}
    for changes, message in [
        ({"keys": u64([foreign])}, "of bucket 3"),
        ({"rows": np.zeros((1, 4), np.float32)}, "^rows: expected"),
        ({"state": np.zeros((1, 3), np.float32)}, "^state: expected"),
        ({"steps": np.zeros(1, np.uint32)}, "'steps', expected keys, rows, state, stamps"),
        ({"stamps": np.array([2**32 - 1], np.uint32)}, "stamps.*expected at most"),
    ]:
        with pytest.raises(ValueError, match=message):
            table.import_rows({**good, **changes})
    with pytest.raises(ValueError, match="no array 'stamps'"):
        table.import_rows({k: v for k, v in good.items() if k != "stamps"})
    assert_same_rows(table.export_bucket(1), before)
