"""Constants that jobs correct: those that made the jobs' seconds are found, whatever the trials had said."""

from __future__ import annotations

import dataclasses

import pytest

from persia_hpc.bench import constants_jobs
from persia_hpc.bench.constants_jobs import SeenJob, correct, see_job
from persia_hpc.bench.train_jobs import synthetic
from persia_hpc.config import load_config
from persia_hpc.cost_model.constants import DEFAULTS
from persia_hpc.job.trial import Trial, count_batches
from tests.support.tiny import tiny_config, write_tiny

SCALES = {
    "pull_row": 1.5,
    "pull_byte": 1.5,
    "push_row": 0.75,
    "push_byte": 0.75,
    "dedup_id": 2.0,
    "pool_id": 1.25,
    "pool_byte": 1.25,
}


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> tuple[SeenJob, SeenJob]:
    """Returns a small and a large job of synthetic data, none of which has run."""
    monkeypatch.setattr(constants_jobs, "run_job", lambda *_: {"steps": 1, "phase_seconds": {}})
    path = synthetic(tmp_path, 2048, 5)
    small, large = (see_job(tmp_path, path, batch, 4, DEFAULTS) for batch in (32, 1024))
    assert large.job.work.samples == 1024
    assert small.job.work.num_features == 5
    return small, large


def test_constants_that_made_the_seconds_of_jobs_are_found(jobs: tuple[SeenJob, SeenJob]) -> None:
    true = dataclasses.replace(
        DEFAULTS,
        worker_byte=0.4,
        trainer_byte=0.3,
        worker_batch=1e5,
        server_step=2e4,
        trainer_step=3e4,
        **{name: scale * getattr(DEFAULTS, name) for name, scale in SCALES.items()},
    )
    seen = []
    for each in jobs:
        costs = each.costs(true)
        seconds = {(role, p): s for role, phases in costs.seconds.items() for p, s in phases.items()}
        waits = {(role, p): 0.5 for role, names in constants_jobs.WAITS.items() for p in names}
        totals = {
            (role, "total"): costs.total(role) + 0.5 * len(names)
            for role, names in constants_jobs.WAITS.items()
        }
        seen.append(SeenJob(seconds | waits | totals, each.job))
    trials = dataclasses.replace(
        DEFAULTS, worker_byte=1.0, trainer_byte=1.0, worker_batch=0.0, server_step=0.0, trainer_step=0.0
    )
    found = correct(trials, *seen)
    assert dataclasses.astuple(found)[1:] == pytest.approx(dataclasses.astuple(true)[1:])


def test_what_shrinks_with_the_batch_costs_nothing_rather_than_less(jobs: tuple[SeenJob, SeenJob]) -> None:
    seen = []
    for each, factor in zip(jobs, (1.0, 0.0), strict=True):
        costs = each.costs(DEFAULTS)
        seconds = {(role, p): factor * s for role, phases in costs.seconds.items() for p, s in phases.items()}
        rest = {(role, p): 0.0 for role, names in constants_jobs.WAITS.items() for p in (*names, "total")}
        seen.append(SeenJob(seconds | rest, each.job))
    found = dataclasses.asdict(correct(DEFAULTS, *seen))
    assert all(found[name] == 0 for names, _ in constants_jobs.GROWING for name in names)
    assert found["worker_batch"] == found["server_step"] == found["trainer_step"] == 0


def test_constants_that_trials_found_to_be_0_stay_so(jobs: tuple[SeenJob, SeenJob]) -> None:
    seen = []
    for each in jobs:
        costs = each.costs(DEFAULTS)
        seconds = {(role, p): s for role, phases in costs.seconds.items() for p, s in phases.items()}
        rest = {(role, p): 0.0 for role, names in constants_jobs.WAITS.items() for p in (*names, "total")}
        seen.append(SeenJob(seconds | rest, each.job))
    found = correct(dataclasses.replace(DEFAULTS, dedup_id=0.0, insert_row=0.0), *seen)
    assert found.dedup_id == 0.0
    assert found.pull_row > 0.0


def test_the_share_of_new_rows_is_what_a_server_sees(tmp_path) -> None:
    trial = Trial(load_config(tiny_config(write_tiny(tmp_path / "t.h5", 128, vocabulary=500))))
    counts = count_batches(trial.stream.worker, trial.sources["train"].read(0, 128), 32)
    trial.steps(trial.schedules["train"].num_steps)
    server = trial.stream.server
    made = sum(table.num_rows for table in server.tables if table is not None)
    steps = trial.schedules["train"].num_steps
    assert constants_jobs.new_share(trial, steps * sum(counts.rows)) == pytest.approx(
        made / server.ledger.pulled_rows, rel=0.05
    )
