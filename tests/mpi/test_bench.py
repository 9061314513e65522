"""Benchmarks that start ranks run them and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path

from persia_hpc.bench import constants
from persia_hpc.bench.train_jobs import run_job, synthetic, w0_settings
from persia_hpc.cli import main
from persia_hpc.errors import PersiaError


def test_bench_ring_measures_every_size_and_round_trips(tmp_path: Path) -> None:
    report = tmp_path / "ring.json"
    assert main(["bench", "ring", "--repeats", "2", "--json", str(report)]) == 0
    results = json.loads(report.read_text())["results"]
    sizes = [r["case"]["bytes"] for r in results if "bytes" in r["case"]]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (64, 8 << 20)
    assert all(r["ours"]["median"] > 0 and r["ratios"] for r in results if "idle" not in r["case"])
    assert [r["case"].get("round trip") for r in results[-3:]] == ["spinning", "asleep", None]


def test_allreduce_of_two_ranks_is_measured() -> None:
    found = constants._allreduce(lambda _: None)
    assert set(found) == {"allreduce_step", "allreduce_cpu", "allreduce_byte", "node_sum"}
    assert found["allreduce_cpu"] > 0
    assert 1e3 < found["node_sum"] < 1e9
    assert 1e3 < found["allreduce_step"] < 1e9


def test_a_job_that_takes_too_long_is_stopped_and_says_how_fast_it_was(tmp_path: Path) -> None:
    endless = w0_settings(synthetic(tmp_path, 256), 64, 64 * 10**8)
    for seconds in (6, 12, 24, 48):  # on a busy machine it hasn't begun after the first of them
        try:
            summary = run_job(tmp_path, endless, {}, seconds=seconds)
            break
        except PersiaError:
            assert seconds < 48
    assert summary["status"] == "interrupted"
    assert 0 < summary["steady"]["samples_per_second"] < 1e9
