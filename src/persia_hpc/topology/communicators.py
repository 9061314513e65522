"""Splits COMM_WORLD by role and into the two planes that carry RMA windows."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

from persia_hpc.config import Config
from persia_hpc.errors import UserError

from .roles import FEED_PLANE, ROW_PLANE, Member, Plan, Role, make_plan, parse_roles


@dataclass(frozen=True)
class Communicators:
    """Holds the communicators of a rank; a plane that the rank isn't part of is None.

    `row_plane` has the servers and workers, `feed_plane` the workers and trainers, `role_comm` the ranks of
    the own role, each in the order of world ranks.
    """

    plan: Plan
    me: Member
    hosts: tuple[str, ...]
    world: MPI.Intracomm
    role_comm: MPI.Intracomm
    row_plane: MPI.Intracomm | None
    feed_plane: MPI.Intracomm | None

    def row_rank(self, role: Role, role_rank: int) -> int:
        """Returns the rank of a server or worker in the row plane."""
        return self.plan.row_rank(role, role_rank)

    def feed_rank(self, role: Role, role_rank: int) -> int:
        """Returns the rank of a worker or trainer in the feed plane."""
        return self.plan.feed_rank(role, role_rank)


def check_world(world: MPI.Intracomm) -> None:
    """Refuses an MPI that can't carry the job. Not collective; every rank comes to the same verdict.

    Raises UserError for an MPI without MPI_THREAD_MULTIPLE, and where srun's tasks don't find each other.
    """
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            f"MPI started with thread level {MPI.Query_thread()}, but MPI_THREAD_MULTIPLE "
            f"({MPI.THREAD_MULTIPLE}) is needed; unset MPI4PY_RC_THREAD_LEVEL, or use an MPI "
            "built with thread support"
        )
    tasks = os.environ.get("SLURM_NTASKS", "1")
    in_step = "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_ID", "").isdigit()
    if in_step and world.size == 1 and tasks.isdigit() and int(tasks) > 1 and "SLURM_PROCID" in os.environ:
        raise UserError(
            f"srun started {tasks} tasks, but MPI sees a world of 1 rank (silent singletons): the PMI of "
            "srun doesn't fit this MPI; try srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH), "
            "see `srun --mpi=list`"
        )


def check_single_mpi_library(maps_file: Path = Path("/proc/self/maps")) -> None:
    """Refuses a process in which two MPI libraries are loaded (mpi4py's and Horovod's).

    Raises UserError, which names both.
    """
    try:
        maps = maps_file.read_text()
    except OSError:
        return
    libraries = sorted({m.group(1) for m in re.finditer(r"(/\S*/libmpi(?:ch)?\.so[.\d]*)", maps)})
    real = sorted({os.path.realpath(path) for path in libraries})
    if len(real) > 1:
        raise UserError(
            f"two MPI libraries are loaded in one process: {', '.join(real)}; mpi4py and Horovod must "
            "be built with the same MPI: rebuild Horovod with tools/build_horovod.sh after choosing the MPI"
        )


def _allowed_roles(world: MPI.Intracomm) -> list[frozenset[Role]]:
    """Roles that each rank may have, by the PERSIA_HPC_ROLES that its component was started with. Collective;
    UserError on all ranks.
    """
    return [parse_roles(text) for text in world.allgather(os.environ.get("PERSIA_HPC_ROLES", ""))]


def show_gpus(role: Role, environment: MutableMapping[str, str]) -> None:
    """Lets only trainers see GPUs: a context of another role's would take memory from them.

    A process may play several roles one after the other, so what is hidden is kept for a later one.
    """
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        kept = f"PERSIA_HPC_{name}"
        if role is not Role.TRAINER:
            environment.setdefault(kept, environment.get(name, "unset"))
            environment[name] = ""
        elif (value := environment.pop(kept, None)) is not None:
            environment[name] = value
            if value == "unset":
                del environment[name]


def split_world(world: MPI.Intracomm, config: Config) -> Communicators:
    """Splits the world by role and plane.

    Collective over world.
    Raises UserError, on all ranks, if the ranks can't have the roles that are asked for.
    """
    check_world(world)
    node_comm = world.Split_type(MPI.COMM_TYPE_SHARED)
    leader = node_comm.bcast(world.rank)
    node_comm.Free()
    nodes = world.allgather(leader)
    hosts = tuple(world.allgather(MPI.Get_processor_name()))
    number = {leader: i for i, leader in enumerate(dict.fromkeys(nodes))}
    ranks = config.ranks
    plan = make_plan(
        ranks.per_node
        or {
            "parameter_servers": ranks.parameter_servers,
            "embedding_workers": ranks.embedding_workers,
            "trainers": ranks.trainers,
        },
        [number[n] for n in nodes],
        per_node=ranks.per_node is not None,
        allowed=_allowed_roles(world),
    )
    me = plan.members[world.rank]

    def split(color: int) -> MPI.Intracomm:
        return MPI.Intracomm(world.Split(color, world.rank))

    def plane(roles: tuple[Role, Role]) -> MPI.Intracomm | None:
        inside = me.role in roles
        comm = split(1 if inside else MPI.UNDEFINED)
        return comm if inside else None

    return Communicators(
        plan=plan,
        me=me,
        hosts=hosts,
        world=world,
        role_comm=split(list(Role).index(me.role)),
        row_plane=plane(ROW_PLANE),
        feed_plane=plane(FEED_PLANE),
    )
