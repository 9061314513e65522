"""A user who isn't root, and may only write into a folder of their own, submits a job and looks at it."""

from __future__ import annotations

import os
import pwd
import shutil

import pytest

from tests.slurm.conftest import ended, job_config, said
from tests.support.slurm import Cluster


def test_an_ordinary_user_trains(cluster: Cluster, data: str) -> None:
    user = pwd.getpwnam("nobody").pw_uid
    home = cluster.folder / "home [of] nobody"
    home.mkdir()
    shutil.copy(data, home / "train.h5")
    job_config(home, str(home / "train.h5"), **{"train.max_steps": 20})
    for path in (home, *home.iterdir()):
        os.chown(path, user, user)
    env = {"HOME": str(home), "USER": "nobody", "LOGNAME": "nobody"}

    def run(*command: str, check: bool = True) -> str:
        done = cluster.run(*command, cwd=home, user=user, check=check, **env)
        return done.stdout + done.stderr

    try:
        readable = run("persia-hpc", "--version", check=False).startswith("persia-hpc")
    except OSError:
        readable = False
    if not readable:
        pytest.skip("nobody may not read this environment")
    words = ["submit", "job.toml", "--run-dir", "run", "--mpi", "pmi2", "--cpus-per-task", "1"]
    job_id = run("persia-hpc", *words).split()[2]
    assert ended(cluster, job_id, home) == {"COMPLETED"}, said(home)
    assert "completed: 20 steps" in run("persia-hpc", "status", "run")
    assert {path.stat().st_uid for path in (home / "run").rglob("*")} == {user}
