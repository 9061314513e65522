"""Jobs that lose their nodes, to others or by a crash, and jobs that wait for each other."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from persia_hpc.launch.registry import read_summary
from tests.slurm.conftest import ended, job_config, said, submit
from tests.support.jobs import wait_for
from tests.support.slurm import Cluster
from tests.support.tiny import run_digest

NUM_STEPS = 200
SLOW = {"model.class": "tests.slurm.models:SlowAtFirst"}  # until it is started again


@pytest.fixture(scope="module")
def reference(cluster: Cluster, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of an uninterrupted run of the same model and data."""
    folder = tmp_path_factory.mktemp("reference")
    job_config(folder, data)
    assert ended(cluster, submit(cluster, folder), folder) == {"COMPLETED"}, said(folder)
    return run_digest(folder / "run")


def begun(cluster: Cluster, data: str, folder: Path, *options: str, **changes: object) -> str:
    """Submits a slow job; its id, when it trains."""
    job_config(folder, data, **SLOW, **changes)
    job_id = submit(cluster, folder, *options)
    events = folder / "run" / "metrics.jsonl"
    wait_for(lambda: events.exists() and '"train"' in events.read_text(), 120)
    return job_id


def assert_went_on(cluster: Cluster, job_id: str, folder: Path, reference: str) -> None:
    """The job has been started again, from a checkpoint, and has come to the end of an uninterrupted run."""
    assert ended(cluster, job_id, folder) == {"COMPLETED"}, said(folder)
    assert cluster.job(job_id)["Restarts"] == "1", said(folder)
    summary = read_summary(folder / "run")
    assert summary is not None
    assert 0 < summary["this_run"]["steps"] < summary["steps"] == NUM_STEPS, said(folder)
    assert run_digest(folder / "run") == reference


@pytest.mark.parametrize(("launcher", "partition"), [("srun", "gentle"), ("mpiexec", "main")])
def test_preempted_job_saves_and_goes_on(
    launcher: str, partition: str, cluster: Cluster, data: str, reference: str, tmp_path: Path
) -> None:
    """In `gentle` it has a grace time, in which only its steps get TERM; in `main` just Slurm's KillWait."""
    job_id = begun(cluster, data, tmp_path, "--launcher", launcher, "--partition", partition)
    urgent = ["--parsable", "--partition=urgent", "-N3", "--exclusive", "--time=1", "--output=/dev/null"]
    other = cluster.run("sbatch", *urgent, "--wrap=sleep 1", cwd=tmp_path).stdout.strip()
    assert ended(cluster, other, tmp_path) == {"COMPLETED"}
    assert_went_on(cluster, job_id, tmp_path, reference)


def test_job_goes_on_elsewhere_when_its_node_has_died(
    cluster: Cluster, data: str, reference: str, tmp_path: Path
) -> None:
    job_id = begun(cluster, data, tmp_path, **{"checkpoint.every": 2})
    wait_for((tmp_path / "run" / "latest").exists, 60)
    node = cluster.job(job_id)["NodeList"]
    cluster.kill_node(node)
    try:
        assert_went_on(cluster, job_id, tmp_path, reference)
        assert cluster.job(job_id)["NodeList"] != node
    finally:
        cluster.revive_node(node)


def test_seeds_are_summarised(cluster: Cluster, data: str, tmp_path: Path) -> None:
    job_config(tmp_path, data, **{"train.max_steps": 20, "data.valid": [data]})
    job_id = submit(cluster, tmp_path, "--seeds", "3-4")
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    out = cluster.run("persia-hpc", "report", "run", cwd=tmp_path).stdout
    assert out.startswith("2 seeds, 2 of them ended: 3, 4\n")
    assert any(line.startswith("valid.auc ") and "±" in line for line in out.splitlines()), out
    digests = {run_digest(tmp_path / "run" / f"seed-{seed}") for seed in (3, 4)}
    assert len(digests) == 2


def test_one_seed_is_requeued_without_the_others(cluster: Cluster, data: str, tmp_path: Path) -> None:
    """The last task to start has the number of the array as its own."""
    job_config(tmp_path, data, **SLOW)
    array = submit(cluster, tmp_path, "--seeds", "3-4", "--time", "10")
    runs = {seed: tmp_path / "run" / f"seed-{seed}" for seed in (3, 4)}
    for run in runs.values():
        events = run / "metrics.jsonl"
        wait_for(lambda events=events: events.exists() and '"train"' in events.read_text(), 120)
    assert [(run / "slurm_job").read_text() for run in runs.values()] == [f"{array}_3\n", f"{array}_4\n"]
    status = cluster.run("persia-hpc", "status", "run/seed-3", cwd=tmp_path).stdout
    assert f"Slurm job {array}_3: RUNNING" in status
    tasks = {seed: cluster.job(f"{array}_{seed}") for seed in runs}
    (first,) = (seed for seed, task in tasks.items() if task["JobId"] == array)
    (other,) = {3, 4} - {first}
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_{first}")
    wait_for(lambda: cluster.job(f"{array}_{first}").get("Restarts") == "1", 60)
    assert cluster.job(f"{array}_{other}")["Restarts"] == "0", said(tmp_path)
    cluster.run("scancel", array)


def test_data_training_and_evaluation_are_a_chain(cluster: Cluster, tmp_path: Path) -> None:
    words = "synthetic --rows 2000 --shards 2 --out data --features 2 --dense 1"
    (tmp_path / "job.toml").write_text(
        "[ranks]\nparameter_servers = 1\nembedding_workers = 1\ntrainers = 1\n"
        '[data]\ntrain = "data/train-*.h5"\ntest = "data/train-*.h5"\nbatch_size = 100\n'
        '[tables.default]\ndim = 4\ncapacity = "1 MiB"\n'
        '[model]\nclass = "dlrm"\n[train]\nreducer = "mpi"\n'
    )
    options = ["--preprocess", words, "--preprocess-parts", "2", "--evaluate=--split train"]
    job_id = submit(cluster, tmp_path, *options)
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    wait_for((tmp_path / "run" / "evaluation.json").exists, 60)
    assert '"auc"' in (tmp_path / "run" / "evaluation.json").read_text()


def test_what_waits_for_a_failed_job_ends(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[data]\ntrain = "data/train-*.h5"\nbatch_size = 100\n[model]\nclass = "dlrm"\n'
    )
    words = f"table {shlex.quote('missing schema.toml')} --out data"
    job_id = submit(cluster, tmp_path, "--preprocess", words)
    assert ended(cluster, job_id, tmp_path) == {"CANCELLED"}, said(tmp_path)
    assert "missing schema.toml" in said(tmp_path)
