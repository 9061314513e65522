from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persia_hpc import _native
from persia_hpc.topology.sharding import bucket_bounds

EXTREMES = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


class Plan(NamedTuple):
    tables: list[int]
    groups: list[int]
    num_buckets: list[int]

    def deduplicator(self, num_servers: int) -> _native.Deduplicator:
        bounds = [bucket_bounds(n, num_servers) for n in self.num_buckets]
        return _native.Deduplicator(
            tables=self.tables, groups=self.groups, num_buckets=self.num_buckets, bounds=bounds
        )


def buckets_of(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    bits = num_buckets.bit_length() - 1
    return keys >> np.uint64(64 - bits) if bits else np.zeros_like(keys)


def reference(plan: Plan, values: list[np.ndarray], num_servers: int) -> dict[str, np.ndarray]:
    """The definition in NumPy: unique with first positions, then a stable sort by bucket."""
    feature_offsets = np.cumsum([0, *map(len, values)])
    ids = np.concatenate([np.empty(0, np.uint64), *values])
    feature_of_id = np.repeat(np.arange(len(values)), [len(v) for v in values])
    table_of_id = np.asarray(plan.tables, np.int64)[feature_of_id] if len(ids) else np.empty(0, np.int64)
    keys, table_offsets, server_offsets = [], [0], []
    row_of_id = np.empty(len(ids), np.int64)
    for table, num_buckets in enumerate(plan.num_buckets):
        mine = np.flatnonzero(table_of_id == table)
        unique, first, inverse = np.unique(_native.mix(ids[mine]), return_index=True, return_inverse=True)
        order = np.lexsort((first, buckets_of(unique, num_buckets)))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        row_of_id[mine] = table_offsets[-1] + place[inverse]
        bounds = bucket_bounds(num_buckets, num_servers)
        of_rows = buckets_of(unique[order], num_buckets)
        server_offsets.append(table_offsets[-1] + np.searchsorted(of_rows, bounds))
        keys.append(unique[order])
        table_offsets.append(table_offsets[-1] + len(unique))
    groups = np.asarray(plan.groups)
    group_starts = [table_offsets[np.flatnonzero(groups == g)[0]] for g in range(groups[-1] + 1)]
    base = np.asarray(group_starts)[groups[table_of_id]] if len(ids) else np.empty(0, np.int64)
    positions = np.argsort(row_of_id, kind="stable")
    uses = np.bincount(row_of_id, minlength=table_offsets[-1])
    return {
        "keys": np.concatenate(keys),
        "table_offsets": np.asarray(table_offsets),
        "server_offsets": np.asarray(server_offsets),
        "group_offsets": np.asarray([*group_starts, table_offsets[-1]]),
        "indices": row_of_id - base,
        "feature_offsets": feature_offsets,
        "row_offsets": np.concatenate([[0], np.cumsum(uses)]),
        "positions": positions,
    }


def assert_is(result: Any, expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(result, name), array, err_msg=name)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Plan, list[np.ndarray]]:
    num_tables = draw(st.integers(1, 4))
    steps = draw(st.lists(st.integers(0, 1), min_size=num_tables - 1, max_size=num_tables - 1))
    num_buckets = draw(st.lists(st.sampled_from([1, 2, 8, 1024]), min_size=num_tables, max_size=num_tables))
    tables = draw(st.lists(st.integers(0, num_tables - 1), max_size=6))
    few = st.sampled_from(EXTREMES) | st.integers(0, 20)
    ids = st.lists(few, max_size=40) | st.lists(st.integers(0, 2**64 - 1), max_size=40)
    values = [np.asarray(draw(ids), np.uint64) for _ in tables]
    return Plan(tables, [0, *np.cumsum(steps).tolist()], num_buckets), values


@settings(max_examples=100, deadline=None)
@given(batches(), st.integers(1, 5))
def test_matches_the_definition(case: tuple[Plan, list[np.ndarray]], num_servers: int) -> None:
    plan, values = case
    result = plan.deduplicator(num_servers).run(values)
    assert_is(result, reference(plan, values, num_servers))
    assert result.indices.dtype == np.uint16


@settings(max_examples=50, deadline=None)
@given(batches(), st.integers(2, 5))
def test_only_server_offsets_depend_on_the_number_of_servers(
    case: tuple[Plan, list[np.ndarray]], num_servers: int
) -> None:
    plan, values = case
    one, many = plan.deduplicator(1).run(values), plan.deduplicator(num_servers).run(values)
    for name in ("keys", "table_offsets", "group_offsets", "indices", "row_offsets", "positions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    for table, num_buckets in enumerate(plan.num_buckets):
        bounds = bucket_bounds(num_buckets, num_servers)
        offsets = many.server_offsets[table]
        assert offsets[0] == many.table_offsets[table]
        assert offsets[-1] == many.table_offsets[table + 1]
        for server in range(num_servers):
            part = buckets_of(many.keys[offsets[server] : offsets[server + 1]], num_buckets)
            assert all(bounds[server] <= b < bounds[server + 1] for b in part.tolist())


@settings(max_examples=50, deadline=None)
@given(batches())
def test_transpose_is_the_inverse_of_indices(case: tuple[Plan, list[np.ndarray]]) -> None:
    plan, values = case
    r = plan.deduplicator(3).run(values)
    row_of_position = np.repeat(np.arange(len(r.keys)), np.diff(r.row_offsets.astype(np.int64)))
    assert sorted(r.positions.tolist()) == list(range(len(r.indices)))
    for row, position in zip(row_of_position.tolist(), r.positions.tolist(), strict=True):
        feature = int(np.searchsorted(r.feature_offsets, position, side="right")) - 1
        base = int(r.group_offsets[plan.groups[plan.tables[feature]]])
        assert base + int(r.indices[position]) == row
        expected = values[feature][position - int(r.feature_offsets[feature])]
        assert _native.unmix(r.keys[row : row + 1])[0] == expected


@pytest.mark.parametrize("num_rows", [65536, 65537])
def test_indices_are_narrow_up_to_65536_rows_of_a_group(num_rows: int) -> None:
    # The other group has more rows in all than fit, but each group counts alone.
    plan = Plan([0, 1], [0, 1], [1024, 1024])
    values = [np.arange(num_rows, dtype=np.uint64), np.arange(1000, dtype=np.uint64)]
    result = plan.deduplicator(2).run(values)
    assert result.indices.dtype == (np.uint16 if num_rows == 65536 else np.uint32)
    assert_is(result, reference(plan, values, 2))


def test_results_do_not_depend_on_earlier_calls() -> None:
    rng = np.random.default_rng(5)
    plan = Plan([0, 1, 0], [0, 0], [64, 1])
    reused = plan.deduplicator(2)
    for size in (10, 5000, 3, 0, 700):
        values = [rng.integers(0, 1000, size).astype(np.uint64) for _ in range(3)]
        assert_is(reused.run(values), reference(plan, values, 2))


def test_arrays_outlive_the_result_and_later_calls() -> None:
    plan = Plan([0], [0], [8])
    dedup = plan.deduplicator(1)
    first = np.arange(1000, dtype=np.uint64)
    keys = dedup.run([first]).keys
    before = keys.copy()
    for _ in range(20):
        dedup.run([first + np.uint64(10_000)])
    np.testing.assert_array_equal(keys, before)
    assert keys.ctypes.data % 64 == 0


def test_threads_may_share_a_deduplicator() -> None:
    plan = Plan([0, 0], [0], [64])
    dedup = plan.deduplicator(3)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            values = [rng.integers(0, 500, 2000).astype(np.uint64) for _ in range(2)]
            got, expected = dedup.run(values), reference(plan, values, 3)
            if not all(np.array_equal(getattr(got, name), array) for name, array in expected.items()):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([np.zeros(3, np.int64)], r"values\[0\]: expected a C-contiguous uint64 .* got int64 \[3\]"),
        ([np.zeros((3, 1), np.uint64)], r"of shape \[N\], got uint64 \[3, 1\]"),
        ([np.zeros(6, np.uint64)[::2]], "not C-contiguous"),
        ([[1, 2]], "got list"),
        ([], "expected the ids of 1 features, got 0"),
    ],
)
def test_bad_values_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan([0], [0], [8]).deduplicator(1).run(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": [1]}, "feature 0: table must be below 1"),
        ({"groups": [1]}, "groups must start at 0"),
        ({"num_buckets": [6], "bounds": [[0, 6]]}, "power of two"),
        ({"bounds": [[0, 4]]}, "grow from 0 to num_buckets = 8"),
        ({"bounds": []}, "one entry per table"),
    ],
)
def test_contradictory_plans_are_refused(change: dict[str, Any], message: str) -> None:
    plan = {"tables": [0], "groups": [0], "num_buckets": [8], "bounds": [[0, 8]]}
    with pytest.raises(ValueError, match=message):
        _native.Deduplicator(**{**plan, **change})
