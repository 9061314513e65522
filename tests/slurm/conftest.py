"""One Slurm for all tests of this folder, and the run that others are compared with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import write_config
from tests.support.slurm import Cluster, slurm_cluster
from tests.support.tiny import tiny_config, write_tiny

NUM_SAMPLES = 6400  # 200 steps of 32
FEW_STEPS = {"train.max_steps": 40}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("data") / "train.h5", NUM_SAMPLES, seed=3)


def job_config(folder: Path, data: str, **changes: object) -> Path:
    """job.toml in `folder`: `sync`, which is reproducible."""
    return write_config(folder / "job.toml", tiny_config(data, **changes))


def submit(cluster: Cluster, folder: Path, *options: str, **env: str) -> str:
    """Submits job.toml with results in `folder`/run; the job's id."""
    command = [
        "persia-hpc",
        "submit",
        "job.toml",
        "--run-dir",
        "run",
        "--mpi",
        "pmi2",
        "--cpus-per-task",
        "1",
    ]
    done = cluster.run(*command, *options, cwd=folder, **env)
    match = re.search(r"^submitted job (\d+)$", done.stdout, re.MULTILINE)  # not those before and behind it
    assert match, done.stdout + done.stderr
    return match.group(1)


def said(folder: Path) -> str:
    """What the jobs of a folder have written, for messages of failed assertions."""
    logs = [*folder.glob("*.out"), *folder.glob("run/*.out"), *folder.glob("run/logs/*.log")]
    return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in logs)


def ended(cluster: Cluster, job_id: str, folder: Path, seconds: float = 120) -> set[str]:
    """States of a job (of its tasks or components) when it has ended."""
    try:
        return cluster.wait(job_id, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{said(folder)}") from None
