"""Finds the launcher, and knows the command and environment that each kind needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from persia_hpc.errors import UserError

# `python -c` and `python -m` look for modules in the current directory first, which may be a folder of data.
ELSEWHERE = "import sys; sys.path[:] = [folder for folder in sys.path if folder]\n"
# Like `python -m mpi4py`, which ends the whole job when a rank fails.
MPI_PYTHON = (sys.executable, "-c", f"{ELSEWHERE}from mpi4py.run import main; main()")


@dataclass(frozen=True)
class Launcher:
    """Holds a launcher's path and kind.

    Kinds are "hydra" (MPICH, Intel MPI), "openmpi4", "openmpi5", "srun" and "unknown".
    """

    path: str
    flavour: str

    def command(self, num_ranks: int, program: Sequence[str]) -> list[str]:
        """Returns the command line that starts `num_ranks` ranks of a program."""
        options = ["-n", str(num_ranks)]
        if self.flavour == "openmpi4":
            options += ["--oversubscribe", "--bind-to", "none"]
        if self.flavour == "srun":
            return [self.path, *_srun_arguments(num_ranks, program, os.environ)]
        return [self.path, *options, *program]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Returns `base` with what this launcher needs; what the user has set stays."""
        extra: dict[str, str] = {}
        if self.flavour.startswith("openmpi"):
            # Ranks share cores on small machines: without yielding, a waiting rank keeps a working one out.
            extra["OMPI_MCA_mpi_yield_when_idle"] = "1"
            if os.geteuid() == 0:
                extra |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        if self.flavour == "openmpi4":
            extra |= {
                "OMPI_MCA_rmaps_base_oversubscribe": "1",
                "OMPI_MCA_hwloc_base_binding_policy": "none",
            }
        if self.flavour == "openmpi5":
            extra |= {
                "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
                "PRTE_MCA_hwloc_default_binding_policy": "none",
                "OMPI_MCA_osc": "^ucx",
                # Else ranks that meet late over TCP may stand still (docs/running_on_slurm.md).
                "OMPI_MCA_mpi_preconnect_mpi": "1",
            }
        return {**extra, **base}


# What the components of a heterogeneous job are for, in their order.
COMPONENT_ROLES = {
    2: ("parameter_servers,embedding_workers", "trainers"),
    3: ("parameter_servers", "embedding_workers", "trainers"),
}


def _srun_arguments(num_ranks: int, program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the arguments of an srun that starts `num_ranks` ranks on all nodes of the allocation.

    A heterogeneous job becomes one step over all components, each of which is told its roles by
    PERSIA_HPC_ROLES.

    Raises UserError when its components can't be those of `COMPONENT_ROLES`.
    """
    common = ["--kill-on-bad-exit=1", "--unbuffered"]

    def binding(suffix: str) -> list[str]:  # srun no longer inherits it
        value = environment.get(f"SLURM_CPUS_PER_TASK{suffix}")
        return [] if value is None else ["-c", value]

    size = environment.get("SLURM_HET_SIZE", "1")
    if size in ("0", "1"):
        return ["-n", str(num_ranks), *common, *binding(""), *program]
    if not size.isdigit() or int(size) not in COMPONENT_ROLES:
        raise UserError(
            f"the heterogeneous job has {size} components; expected 2 (servers and workers, trainers) or 3 "
            "(servers, workers, trainers), in this order"
        )
    tasks = [environment.get(f"SLURM_NTASKS_HET_GROUP_{i}", "0") for i in range(int(size))]
    if sum(map(int, tasks)) != num_ranks:
        raise UserError(
            f"the components of the heterogeneous job have {' + '.join(tasks)} tasks, but [ranks] asks for "
            f"{num_ranks} in all; change the #SBATCH lines or [ranks]"
        )
    arguments: list[str] = []
    for i, roles in enumerate(COMPONENT_ROLES[int(size)]):
        suffix = f"_HET_GROUP_{i}"
        arguments += [":"] * (i > 0) + [f"--het-group={i}", "-n", tasks[i], *common, *binding(suffix)]
        arguments += ["env", f"PERSIA_HPC_ROLES={roles}", *program]
    return arguments


def find_launcher(name: str = "mpiexec") -> Launcher:
    """Returns the mpiexec beside the interpreter (this environment's MPI), else the one on PATH; or srun.

    Raises UserError if there is none.
    """
    if name == "srun":
        path = shutil.which("srun")
        if path is None:
            raise UserError("--launcher srun: there is no srun on PATH; use --launcher mpiexec")
        return Launcher(path, "srun")
    beside = Path(sys.executable).with_name("mpiexec")
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if path is None:
        raise UserError(
            f"there is no mpiexec beside {sys.executable} or on PATH; install an MPI "
            "(pip install 'persia-hpc[mpich]') or load your site's MPI module"
        )
    return Launcher(path, _flavour(path))


def _flavour(path: str) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{path} can't be run ({error}); check the MPI installation") from None
    text = done.stdout + done.stderr
    if "HYDRA" in text or "Intel(R) MPI" in text:
        return "hydra"
    if "OpenRTE" in text:
        return "openmpi4"
    version = re.search(r"(?:Open MPI|PRRTE|prterun)\D*(\d+)\.", text)
    if version:
        return "openmpi4" if "Open MPI" in text and int(version.group(1)) <= 4 else "openmpi5"
    return "unknown"
