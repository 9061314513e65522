"""Tells where this process runs: as a rank of an MPI job or not, and under our supervisor or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

SUPERVISED = "PERSIA_HPC_SUPERVISED"  # set by the supervisor in every rank, to the job's own number
# Set by a launcher in every rank; SLURM_* need more care.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def inside_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether a launcher started this process as a rank.

    A batch script and an interactive step of one task (`srun --pty bash`) have SLURM_PROCID too: only a step
    of several tasks counts.
    """
    if any(name in environment for name in _RANK_VARIABLES):
        return True
    in_step = environment.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environment
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return in_step and tasks.isdigit() and int(tasks) > 1


def world_rank_of(environment: Mapping[str, str] = os.environ) -> int | None:
    """Returns the rank that the launcher gave this process, before MPI is started; None if it gave none."""
    for name in (*_RANK_VARIABLES, "SLURM_PROCID"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def slurm_job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the id of the Slurm job that this process belongs to, None outside of one.

    A task of an array is ARRAY_TASK: one of them has the SLURM_JOB_ID that names the array as a whole.
    """
    array, task = (environment.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
    if "SLURM_JOB_ID" in environment and array.isdigit() and task.isdigit():
        return f"{array}_{task}"
    return environment.get("SLURM_JOB_ID")


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether the supervisor started this rank's job, and tells the user how it ended."""
    return SUPERVISED in environment


# Of each launcher: the variables in which it tells a rank how many ranks are on this host, and in all.
_SIZES = (
    ("MPI_LOCALNRANKS", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_STEP_NUM_NODES", None),
)
# How MPI libraries are told to open ports on the loopback interface only, or, in Open MPI, none at all: UCX
# and libfabric, which MPICH and Open MPI use, and Open MPI's own TCP. Ranks of one host share memory anyway.
_LOOPBACK = {
    "UCX_NET_DEVICES": "lo",
    "FI_TCP_IFACE": "lo",
    "FI_SOCKETS_IFACE": "lo",
    "OMPI_MCA_btl": "^tcp",
}


def keep_to_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps other hosts out of a job whose ranks are all on this one; to be called before MPI starts.

    What the user has set stays, and a job of several hosts is left alone.
    """
    if inside_mpi(environment) and _on_one_host(environment):
        for name, value in _LOOPBACK.items():
            environment.setdefault(name, value)


# How long the threads of PyTorch's OpenMP poll before they sleep: GNU's in passes of its loop, some tens of
# microseconds instead of milliseconds; LLVM's and Intel's in milliseconds.
_POLLING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps PyTorch's threads from polling for one without a core; to be called before torch is imported.

    What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in _POLLING.items():
            environment.setdefault(name, value)


def _on_one_host(environment: Mapping[str, str]) -> bool:
    if "SLURM_HET_SIZE" in environment:  # what a rank is told concerns its own component
        return False
    for here, in_all in _SIZES:
        if here in environment and (in_all is None or in_all in environment):
            return environment[here] == ("1" if in_all is None else environment[in_all])
    return False
