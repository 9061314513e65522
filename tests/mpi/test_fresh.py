"""`mode = "fresh"` over real rings: the tables of `sync`, bit for bit, with patches in whatever order."""

from __future__ import annotations

import random

from tests.mpi.test_consistency import closed, make_case, run_cases
from tests.support.tiny import write_tiny

SHAPES = [(1, 1), (3, 2), (2, 3)]  # servers, workers
OPTIONS = {
    "tables.default.optimizer": [{"name": "adam", "lr": 0.01}, {"name": "ftrl", "lr": 0.05}],
    "tables.item.admission": [{}, {"after": 2}],
    "tables.item.ttl": [0, 5],
    "tables.item.eviction": ["lru"],
    "tables.user.eviction": ["lru", "lfu"],
    "tables.user.storage": ["fp32", "bf16"],
    "wire.rows": ["fp32", "fp16"],
    "wire.gradients": ["fp32"],
    "server_threads": [1, 2],
    "data.prefetch": [0, 1, 3],
}
SMALL = {
    "tables.default.capacity": 64 * 90,
    "tables.item.capacity": 64 * 150,
    "tables.user.capacity": 64 * 40,
    "tables.item.buckets": 4,
    "tables.user.buckets": 4,
}


def test_fresh_is_sync_for_any_ranks_options_and_delays(tmp_path, programs):
    data = write_tiny(tmp_path / "d.h5", 330, vocabulary=400)
    rng = random.Random(5)
    cases = []
    for trainers in (1, 2, 3):
        options = {key: rng.choice(values) for key, values in OPTIONS.items()}
        for i, (servers, workers) in enumerate(SHAPES):
            changes = {**SMALL, **options, "train.epochs": 2, "jitter": 0.002 * (i == 2)}
            modes = [{"mode": "fresh", "lookahead": 1 + i}, *([{"mode": "sync"}] if i == 0 else [])]
            for mode in modes:
                name = f"r{len(cases)}"
                cases.append(make_case(tmp_path, data, name, servers, workers, trainers, **changes, **mode))
    results = run_cases(programs, cases)
    for begin in range(0, len(cases), 4):
        first, sync, *others = results[begin : begin + 4]
        assert sync["ledger"]["early_rows"] == 0
        for result in (first, *others):
            assert result["digest"] == sync["digest"]
            ledger = result["ledger"]
            assert closed(ledger), ledger
            assert 0 < ledger["patched_rows"] <= ledger["early_rows"] <= ledger["pulled_rows"]
            assert ledger["evicted_rows"] > 0
            counted = ("pulled_rows", "applied_rows", "evicted_rows", "unadmitted_rows")
            assert [ledger[name] for name in counted] == [sync["ledger"][name] for name in counted]
            assert all(set(histogram) == {"0"} for histogram in result["histogram"])


def test_patches_that_go_ahead_of_other_updates_change_nothing(tmp_path, programs):
    """Tables that have room, and the policy by which a patch need not wait for the pull after all updates.

    Servers take some workers for ones on other nodes, whose gradients come in two parts.
    """
    data = write_tiny(tmp_path / "d.h5", 330, vocabulary=400)
    options = {"tables.item.eviction": "lru", "tables.user.eviction": "lru", "train.epochs": 2}
    cases = []
    for trainers in (1, 2, 3):
        for i, (servers, workers) in enumerate(SHAPES):
            far = trainers + i != 3
            changes = {**options, "server_threads": 1 + i % 2, "jitter": 0.002 * (i == 2), "far": far}
            modes = [{"mode": "fresh", "lookahead": 1 + i}, *([{"mode": "sync"}] if i == 0 else [])]
            for mode in modes:
                cases.append(
                    make_case(tmp_path, data, f"r{len(cases)}", servers, workers, trainers, **changes, **mode)
                )
    results = run_cases(programs, cases)
    for begin in range(0, len(cases), 4):
        first, sync, *others = results[begin : begin + 4]
        for result in (first, *others):
            assert result["digest"] == sync["digest"]
            assert closed(result["ledger"]), result["ledger"]
            assert result["ledger"]["patched_rows"] > 0
            assert result["ledger"]["evicted_rows"] == 0
            assert all(set(histogram) == {"0"} for histogram in result["histogram"])
