"""Runs in a Slurm allocation: started by srun, by mpiexec, by the supervisor; on two nodes; heterogeneous."""

from __future__ import annotations

from pathlib import Path

import pytest

from persia_hpc.launch.registry import read_ranks, read_summary
from tests.slurm.conftest import FEW_STEPS, ended, job_config, said
from tests.support.slurm import Cluster
from tests.support.tiny import run_digest

THREE = {"ranks": {"parameter_servers": 1, "embedding_workers": 1, "trainers": 1}}
SIX = {"ranks": {"parameter_servers": 2, "embedding_workers": 2, "trainers": 2}}
COMMANDS = {
    "supervisor-srun": "SLURM_MPI_TYPE=pmi2 persia-hpc train job.toml --run-dir run --launcher srun",
    "supervisor-mpiexec": "persia-hpc train job.toml --run-dir run --launcher mpiexec",
    "srun": "srun --mpi=pmi2 --kill-on-bad-exit=1 persia-hpc train job.toml --run-dir run",
    # Each component is told its roles: what slurm/README.md offers where a heterogeneous job isn't possible.
    "mpmd-srun": "srun --mpi=pmi2 --kill-on-bad-exit=1 -n3 --multi-prog roles.conf",
    "mpmd-mpiexec": "mpiexec -n 2 env PERSIA_HPC_ROLES=parameter_servers,embedding_workers "
    "persia-hpc train job.toml --run-dir run : -n 1 env PERSIA_HPC_ROLES=trainers "
    "persia-hpc train job.toml --run-dir run",
}
ROLES = """\
0-1 env PERSIA_HPC_ROLES=parameter_servers,embedding_workers persia-hpc train job.toml --run-dir run
2   env PERSIA_HPC_ROLES=trainers persia-hpc train job.toml --run-dir run
"""


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("how", COMMANDS)
def test_each_launcher_trains_the_same(
    how: str, cluster: Cluster, data: str, tmp_path: Path, digests: dict[str, str]
) -> None:
    job_config(tmp_path, data, **THREE, **FEW_STEPS)
    (tmp_path / "roles.conf").write_text(ROLES)
    options = ["--parsable", "-n3", "--time=5", "--output=%x-%j.out", f"--wrap={COMMANDS[how]}"]
    job_id = cluster.run("sbatch", *options, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    summary = read_summary(tmp_path / "run")
    assert summary is not None
    assert (summary["status"], summary["steps"]) == ("completed", 40)
    digests[how] = run_digest(tmp_path / "run")
    assert len(set(digests.values())) == 1


@pytest.mark.parametrize("how", ["supervisor-srun", "supervisor-mpiexec"])
def test_roles_are_spread_over_two_nodes(how: str, cluster: Cluster, data: str, tmp_path: Path) -> None:
    job_config(tmp_path, data, **SIX, **FEW_STEPS)
    wrap = COMMANDS[how]
    options = ["--parsable", "-N2", "--ntasks-per-node=3", "--time=5", f"--wrap={wrap}"]
    job_id = cluster.run("sbatch", *options, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    plan = (tmp_path / "run/logs/rank-0000.log").read_text()
    nodes = [line for line in plan.splitlines() if "parameter_server (rank" in line]
    assert len(nodes) == 2, plan
    assert all("1 parameter_server" in n and "1 embedding_worker" in n and "1 trainer" in n for n in nodes)


def test_heterogeneous_job_has_trainers_only_on_its_second_part(
    cluster: Cluster, data: str, tmp_path: Path
) -> None:
    job_config(tmp_path, data, **SIX, **FEW_STEPS)
    wrap = COMMANDS["supervisor-srun"]
    parts = ["-N1", "-n4", "--time=5", ":", "-N1", "-n2", "--time=5"]
    job_id = cluster.run("sbatch", "--parsable", *parts, f"--wrap={wrap}", cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    roles = [rank.role for _, rank in sorted(read_ranks(tmp_path / "run").items())]
    assert roles == ["parameter_server"] * 2 + ["embedding_worker"] * 2 + ["trainer"] * 2


def test_only_trainers_see_the_gpus(cluster: Cluster, data: str, tmp_path: Path) -> None:
    changes = {
        "model.class": "tests.slurm.models:NotesGpus",
        "data.transform": "tests.slurm.models:note_gpus",
    }
    job_config(tmp_path, data, **THREE, **FEW_STEPS, **changes, **{"train.device": "cpu"})
    wrap = COMMANDS["supervisor-srun"]
    options = ["--parsable", "-N1", "-n3", "--gpus-per-node=2", "--time=5", f"--wrap={wrap}"]
    job_id = cluster.run("sbatch", *options, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"COMPLETED"}, said(tmp_path)
    assert (tmp_path / "trainer-sees").read_text() == "0,1"
    assert (tmp_path / "worker-sees").read_text() == ""


def test_wrong_pmi_is_said(cluster: Cluster, data: str, tmp_path: Path) -> None:
    job_config(tmp_path, data, **THREE, **FEW_STEPS)
    wrap = "srun --mpi=none --kill-on-bad-exit=1 persia-hpc train job.toml --run-dir run"
    options = ["--parsable", "-n3", "--time=5", "--output=%x-%j.out", f"--wrap={wrap}"]
    job_id = cluster.run("sbatch", *options, cwd=tmp_path).stdout.strip()
    assert ended(cluster, job_id, tmp_path) == {"FAILED"}, said(tmp_path)
    assert "MPI sees a world of 1 rank (silent singletons)" in said(tmp_path)
