"""Tells where this process runs: as a rank of an MPI job or not, and under our supervisor or not."""

from __future__ import annotations

import os
from collections.abc import Mapping

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


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether the supervisor started this rank's job, and tells the user how it ended."""
    return SUPERVISED in environment
