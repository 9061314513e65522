"""The row plane with scripted trainers: bit-identity over rank counts, the bound under delays, the ledger,
stops.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from persia_hpc.samples.batch import IdColumn, SampleBatch
from persia_hpc.samples.schema import DatasetSchema, FeatureSchema
from persia_hpc.samples.writer import DatasetWriter
from tests.support.mpi import run_mpi
from tests.support.tiny import tiny_config, write_tiny


def run_cases(programs, cases, timeout=240):
    ranks = max(c["servers"] + c["workers"] + c["trainers"] for c in cases)
    done = run_mpi(ranks, programs / "scripted.py", json.dumps(cases), timeout=timeout)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len(cases)
    return results


def make_case(tmp_path, data, name, servers=1, workers=1, trainers=1, gradient="smooth", **changes):
    jitter = changes.pop("jitter", 0.0)
    stop_at = changes.pop("stop_at", None)
    pause = changes.pop("pause", 0.0)
    late_step = changes.pop("late_step", None)
    far = changes.pop("far", False)
    config = tiny_config(
        data,
        **{
            "ranks": {"parameter_servers": servers, "embedding_workers": workers, "trainers": trainers},
            "run_dir": str(tmp_path / name),
            "transport.ring_bytes": 1 << 16,
            **changes,
        },
    )
    return {
        "servers": servers,
        "workers": workers,
        "trainers": trainers,
        "gradient": gradient,
        "jitter": jitter,
        "stop_at": stop_at,
        "pause": pause,
        "late_step": late_step,
        "far": far,
        "config": config,
    }


def closed(ledger):
    return ledger["pulled_rows"] == sum(
        ledger[k]
        for k in (
            "applied_rows",
            "evicted_in_flight_rows",
            "unadmitted_rows",
            "nonfinite_rows",
            "dropped_rows",
        )
    )


def test_sync_and_exact_do_not_depend_on_the_number_of_servers_and_workers(tmp_path, programs):
    # Room for little more than one step of 400 ids: rows come and go all the time.
    data = write_tiny(tmp_path / "d.h5", 330, vocabulary=400)
    modes = {
        "sync": {"mode": "sync"},
        "exact": {"mode": "hybrid", "exact": True, "staleness_bound": 3},
        "exact-step": {"mode": "hybrid", "exact": True, "staleness_bound": 2, "apply": "step"},
    }
    cases, labels = [], []
    for mode, settings in modes.items():
        for trainers in (1, 2, 3):
            every = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2), (1, 1)]
            shapes = every if trainers == 2 else [(1, 1), (2, 1), (3, 2)]
            for servers, workers in shapes:
                labels.append((mode, trainers))
                cases.append(
                    make_case(
                        tmp_path,
                        data,
                        f"r{len(cases)}",
                        servers,
                        workers,
                        trainers,
                        **settings,
                        **{
                            "train.epochs": 2,
                            "tables.default.capacity": 64 * 70,
                            "tables.item.capacity": 64 * 150,
                            "tables.user.capacity": 64 * 40,
                            "tables.item.buckets": 4,
                            "tables.user.buckets": 4,
                        },
                    )
                )
    results = run_cases(programs, cases)
    by_label: dict[tuple[str, int], set[str]] = {}
    for label, result in zip(labels, results, strict=True):
        by_label.setdefault(label, set()).add(result["digest"])
        assert closed(result["ledger"]), result["ledger"]
        assert result["ledger"]["evicted_rows"] > 0, "the capacity was not small enough to test eviction"
        assert result["steps"] == 22
    assert {label: len(digests) for label, digests in by_label.items()} == dict.fromkeys(by_label, 1)
    # Different trainers or modes are different computations: equal digests would mean that nothing was
    # compared.
    assert len({next(iter(d)) for d in by_label.values()}) > len(by_label) / 2
    in_flight = sum(r["ledger"]["evicted_in_flight_rows"] for r in results)
    assert in_flight > 0, "no row was evicted in flight"
    for (mode, _), result in zip(labels, results, strict=True):
        bound = {"sync": 0, "exact": 3, "exact-step": 2}[mode]
        for histogram in result["histogram"]:
            assert max(map(int, histogram)) == bound


def counting_data(path, num_samples, num_ids=12):
    """Every sample has an item of a fixed cycle, so every batch of 3 x num_ids samples has all of them."""
    schema = DatasetSchema((FeatureSchema("item", False),))
    batch = SampleBatch(
        {"item": IdColumn((np.arange(num_samples) % num_ids).astype(np.uint64))},
        np.zeros((num_samples, 0), np.float32),
        np.zeros((num_samples, 1), np.float32),
    )
    with DatasetWriter(path, schema) as writer:
        writer.write(batch)
    return str(path)


@pytest.mark.parametrize("exact", [False, True])
def test_no_pull_misses_more_than_the_bound_under_random_delays(tmp_path, programs, exact):
    """The oracle is in the rows: SGD with lr 1 adds one in column i of a row for each applied batch of
    trainer i.
    """
    trainers, batch = 3, 36 * 3
    data = counting_data(tmp_path / "d.h5", batch * 30)
    arms = [(0, "batch"), (1, "batch"), (4, "batch"), (4, "step"), (16, "batch")]
    cases = [
        make_case(
            tmp_path,
            data,
            f"b{bound}-{apply}-{exact}",
            2,
            2,
            trainers,
            "count",
            mode="hybrid",
            exact=exact,
            staleness_bound=bound,
            apply=apply,
            jitter=0.004,
            **{
                "features": {"item": {"table": "item"}},
                "tables": {
                    "item": {
                        "dim": trainers,
                        "optimizer": {"name": "sgd", "lr": 1.0},
                        "init": {"name": "uniform", "low": 0.0, "high": 0.0},
                        "capacity": "1 MiB",
                    }
                },
                "data.batch_size": batch,
                "data.shuffle": False,
            },
        )
        for bound, apply in arms
    ]
    for (bound, _), result in zip(arms, run_cases(programs, cases), strict=True):
        assert result["steps"] == 30
        largest = 0
        for each in result["oracle"]:
            assert each
            for step, counts in each:
                missed = max(step - 1 - c for c in counts)
                assert missed <= bound, f"bound {bound}: a pull of step {step} saw {counts}"
                if exact:
                    assert counts == [max(0, step - 1 - bound)] * trainers
                largest = max(largest, missed)
        # The oracle and the servers' own counter agree on the largest staleness.
        assert largest == max(int(s) for h in result["histogram"] for s in h)
        assert closed(result["ledger"])
        assert result["ledger"]["applied_rows"] == result["ledger"]["pulled_rows"] > 0
        assert result["ledger"]["dropped_rows"] == 0
    if not exact:
        assert largest > 1, "with bound 16 nothing was ever stale: the test tests nothing"


def test_a_stop_is_agreed_and_loses_nothing(tmp_path, programs):
    """A worker of trainer 0 reads the request before gradients of a later step than its next one: it has then
    issued at most a window beyond that, and goes on for at most 2 (window + 2) steps. A worker of other
    trainers may be late to read it: all that holds for it is that the run ends early.
    """
    data = write_tiny(tmp_path / "d.h5", 3200)
    shapes = [  # workers, trainers, the last step at most
        (1, 1, {"mode": "sync"}, 5 + 1 + 2 + 2 * (2 + 2)),
        (2, 3, {"mode": "hybrid", "staleness_bound": 4}, 99),
        (2, 1, {"mode": "hybrid", "staleness_bound": 4, "exact": True}, 5 + 2 + 6 + 2 * (6 + 2)),
        (2, 2, {"mode": "hybrid", "exact": True, "staleness_bound": 2}, 99),
    ]
    cases = [
        make_case(tmp_path, data, f"s{i}", 2, workers, trainers, stop_at=5, jitter=0.002, **mode)
        for i, (workers, trainers, mode, _) in enumerate(shapes)
    ]
    for result, (*_, most) in zip(run_cases(programs, cases), shapes, strict=True):
        assert 5 <= result["steps"] <= most
        assert closed(result["ledger"])
        assert result["ledger"]["dropped_rows"] == 0
        assert sum(h for each in result["histogram"] for h in each.values()) > 0


def test_a_segment_may_be_announced_before_a_worker_is_through_with_the_one_before(tmp_path, programs):
    """Trainer 0 is: without AllReduce nothing makes it wait for the last batch of trainer 1."""
    data = write_tiny(tmp_path / "d.h5", 330)  # 11 steps an epoch
    exact = {"mode": "hybrid", "exact": True, "staleness_bound": 3, "train.epochs": 2}
    cases = [make_case(tmp_path, data, str(late), 1, 2, 2, late_step=late, **exact) for late in (None, 11)]
    on_time, late = run_cases(programs, cases, timeout=60)
    assert late["steps"] == 22
    assert closed(late["ledger"])
    assert late["digest"] == on_time["digest"]


def test_an_idle_server_leaves_its_core_to_others(tmp_path, programs):
    data = write_tiny(tmp_path / "d.h5", 64)
    (result,) = run_cases(programs, [make_case(tmp_path, data, "idle", pause=5.0)])
    assert result["server_cpu_seconds"] < 0.05 * 5.0
