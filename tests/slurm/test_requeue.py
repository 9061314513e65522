"""Jobs of `persia-hpc submit`: requeued at the time limit and resumed, cancelled; and what `status` says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from persia_hpc.launch.registry import read_summary
from tests.slurm.conftest import ended, job_config, said, submit
from tests.support.jobs import wait_for
from tests.support.slurm import Cluster
from tests.support.tiny import run_digest

NUM_STEPS = 200
SLOW = {"model.class": "tests.slurm.models:SlowAtFirst"}


class Submitted:
    """A job that a test has submitted, with its folder."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str) -> None:
        self.cluster, self.folder, self.run_dir = cluster, folder, folder / "run"
        self.id = submit(cluster, folder, *options)

    def status(self) -> str:
        return self.cluster.run("persia-hpc", "status", "run", cwd=self.folder).stdout

    def events(self) -> str:
        path = self.run_dir / "metrics.jsonl"
        return path.read_text() if path.exists() else ""

    def wait_until_training(self) -> None:
        wait_for(lambda: '"train"' in self.events(), 120)


@pytest.fixture(scope="module")
def long_job(cluster: Cluster, data: str, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """Meets its time limit while training; other tests run meanwhile.

    The limit is set when it trains, as start-up takes long on a busy machine, to the next full minute that
    leaves Slurm time for the signal (which may come half a minute early).
    """
    folder = tmp_path_factory.mktemp("long")
    job_config(folder, data, **SLOW)
    job = Submitted(cluster, folder, "--time", "5", "--signal-seconds", "10")
    job.wait_until_training()
    hours, minutes, seconds = map(int, cluster.job(job.id)["RunTime"].split(":"))
    limit = math.ceil((60 * (60 * hours + minutes) + seconds + 20) / 60)
    cluster.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={limit}")
    return job


@pytest.fixture(scope="module")
def reference(
    cluster: Cluster, data: str, long_job: Submitted, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Digest of an uninterrupted run of the same model and data."""
    folder = tmp_path_factory.mktemp("reference")
    job_config(folder, data)
    job = Submitted(cluster, folder, "--time", "5")
    assert ended(cluster, job.id, folder) == {"COMPLETED"}, said(folder)
    summary = read_summary(job.run_dir)
    assert summary is not None
    assert (summary["status"], summary["steps"]) == ("completed", NUM_STEPS)
    assert cluster.job(job.id)["Restarts"] == "0"
    assert "completed: 200 steps" in job.status()
    assert f"step {NUM_STEPS} of {NUM_STEPS} (100 %)" in job.status()
    return run_digest(job.run_dir)


def test_cancelled_job_leaves_a_checkpoint_to_go_on_from(
    cluster: Cluster, data: str, reference: str, tmp_path: Path
) -> None:
    job_config(tmp_path, data, **SLOW)
    job = Submitted(cluster, tmp_path, "--time", "5")
    job.wait_until_training()
    assert "RUNNING" in job.status()
    cluster.run("scancel", job.id)
    assert ended(cluster, job.id, tmp_path) == {"CANCELLED"}, said(tmp_path)
    assert (tmp_path / "run/latest/manifest.json").exists(), said(tmp_path)
    assert cluster.job(job.id)["Restarts"] == "0"
    # The next job in the same directory goes on, and as if nothing had happened.
    (tmp_path / "quick").touch()  # no need to wait for the model any more
    second = Submitted(cluster, tmp_path, "--time", "5")
    assert ended(cluster, second.id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    summary = read_summary(job.run_dir)
    assert summary is not None
    assert 0 < summary["this_run"]["steps"] < summary["steps"] == NUM_STEPS
    assert run_digest(job.run_dir) == reference


def test_restarts_are_bounded(cluster: Cluster, data: str, tmp_path: Path) -> None:
    job_config(tmp_path, data, **SLOW)
    job = Submitted(cluster, tmp_path, "--time", "5", "--max-restarts", "0")
    job.wait_until_training()
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)
    assert ended(cluster, job.id, tmp_path) == {"FAILED"}, said(tmp_path)
    assert cluster.job(job.id)["ExitCode"] == "75:0"
    assert "not requeued after 0 restarts" in said(tmp_path)


def test_run_of_several_time_limits_ends_like_an_uninterrupted_one(
    cluster: Cluster, long_job: Submitted, reference: str
) -> None:
    assert ended(cluster, long_job.id, long_job.folder) == {"COMPLETED"}, said(long_job.folder)
    assert cluster.job(long_job.id)["Restarts"] == "1", said(long_job.folder)
    summary = read_summary(long_job.run_dir)
    assert summary is not None
    assert summary["status"] == "completed"
    assert 0 < summary["this_run"]["steps"] < summary["steps"] == NUM_STEPS
    assert run_digest(long_job.run_dir) == reference
    assert "resumed 1 time" in long_job.status()


def test_finished_run_is_not_trained_again(cluster: Cluster, long_job: Submitted, reference: str) -> None:
    ended(cluster, long_job.id, long_job.folder)
    before = long_job.events()
    again = submit(cluster, long_job.folder, "--time", "5")
    assert ended(cluster, again, long_job.folder) == {"COMPLETED"}, said(long_job.folder)
    assert long_job.events() == before
    assert run_digest(long_job.run_dir) == reference
