"""Binds the ranks of each node to cores, unless somebody else has, or has a say in it."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from persia_hpc.config import Config
from persia_hpc.topology.communicators import Communicators
from persia_hpc.topology.cores import Decision, Found, allowed_cpus, decide, format_cpus
from persia_hpc.transport.progress import default_spin


@dataclass(frozen=True)
class Binding:
    """Holds what this rank may use of its node's cores. `text` says it of all nodes."""

    fair_threads: int  # this rank's part of the cores that it may use
    spin: float  # seconds, before a rank that waits sleeps
    text: str
    before: frozenset[int]  # CPUs
    claim: socket.socket | None

    def undo(self) -> None:
        """Gives the cores back, to the rest of a user's program and to other jobs."""
        if self.claim is not None:
            self.claim.close()
        _bind(self.before)


def bind_ranks(communicators: Communicators, config: Config) -> Binding:
    """Gives each rank its cores, or leaves them all to the system. Threads that begin later inherit them.

    Cores that a launcher gave to a rank alone are all its own, shared ones are divided.

    Collective over the world.
    """
    world, plan, me = communicators.world, communicators.plan, communicators.me
    mine = frozenset(os.sched_getaffinity(0))
    found: list[Found] = world.allgather((me.node, tuple(sorted(mine)), mine == allowed_cpus()))
    here = [m.world_rank for m in plan.members if m.node == me.node]
    fair_threads = max(1, len(mine) // found.count(found[world.rank]))
    spin = default_spin(len(here))  # by the cores of all
    decision, claim = None, None
    if world.rank == here[0]:
        decision = decide(config, [plan.members[rank].role for rank in here], [found[r] for r in here])
        if decision.cpus is not None and (claim := _claim(mine)) is None:
            decision = Decision(None, "not bound (another job has bound its ranks to them)")
    decisions: list[Decision | None] = world.allgather(decision)
    ours = decisions[here[0]]
    assert ours is not None
    if ours.cpus is not None:
        own = ours.cpus[here.index(world.rank)]
        fair_threads = min(fair_threads, len(own))
        _bind(own)
    texts = {plan.members[rank].node: each.text for rank, each in enumerate(decisions) if each is not None}
    names = {m.node: communicators.hosts[m.world_rank] for m in plan.members}
    lines = [f"cores of {names[node]}: {text}" for node, text in texts.items()]
    if len(set(texts.values())) == 1:
        lines = [f"cores: {ours.text}"]
    return Binding(fair_threads, spin, "\n".join(lines), mine, claim)


def _claim(cpus: frozenset[int]) -> socket.socket | None:
    """Claims CPUs for this job until the socket is closed; None if another job on this host has them.

    Two jobs that bind their ranks in the same way would share a few cores and leave others idle. An abstract
    name belongs to no user and no folder, and goes with the process.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0persia-hpc cores {format_cpus(cpus)}"[:100])
    except OSError:
        claim.close()
        return None
    return claim


def _bind(cpus: frozenset[int]) -> None:
    """Binds all threads of this process; one that ends meanwhile needs nothing."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread), cpus)
