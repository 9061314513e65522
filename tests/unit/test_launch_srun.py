"""What the supervisor asks srun for, in homogeneous and heterogeneous jobs, and who sees GPUs."""

from __future__ import annotations

import pytest

from persia_hpc.errors import UserError
from persia_hpc.launch.mpiexec import Launcher
from persia_hpc.topology.communicators import show_gpus
from persia_hpc.topology.roles import Role

SRUN = Launcher("/usr/bin/srun", "srun")


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_HET_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def test_homogeneous_job(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ["/usr/bin/srun", "-n", "3", "--kill-on-bad-exit=1", "--unbuffered"]
    assert SRUN.command(3, ["prog", "x"]) == [*start, "prog", "x"]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert SRUN.command(3, ["prog", "x"]) == [*start, "-c", "4", "prog", "x"]


def test_heterogeneous_job_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    monkeypatch.setenv("SLURM_NTASKS_HET_GROUP_0", "4")
    monkeypatch.setenv("SLURM_NTASKS_HET_GROUP_1", "2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK_HET_GROUP_1", "8")
    line = " ".join(SRUN.command(6, ["prog"]))
    assert line == (
        "/usr/bin/srun --het-group=0 -n 4 --kill-on-bad-exit=1 --unbuffered "
        "env PERSIA_HPC_ROLES=parameter_servers,embedding_workers prog "
        ": --het-group=1 -n 2 --kill-on-bad-exit=1 --unbuffered -c 8 env PERSIA_HPC_ROLES=trainers prog"
    )
    with pytest.raises(UserError, match=r"have 4 \+ 2 tasks, but \[ranks\] asks for 7"):
        SRUN.command(7, ["prog"])
    monkeypatch.setenv("SLURM_HET_SIZE", "4")
    with pytest.raises(UserError, match="4 components; expected 2"):
        SRUN.command(6, ["prog"])


def test_only_trainers_see_gpus_whatever_they_were_before() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "0,1"}
    show_gpus(Role.PARAMETER_SERVER, env)
    show_gpus(Role.EMBEDDING_WORKER, env)
    assert env["CUDA_VISIBLE_DEVICES"] == env["HIP_VISIBLE_DEVICES"] == ""
    show_gpus(Role.TRAINER, env)
    assert env == {"CUDA_VISIBLE_DEVICES": "0,1"}
