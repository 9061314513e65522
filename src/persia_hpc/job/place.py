"""Holds a rank's place in a job: its communicators, its rings and how it waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpi4py import MPI

from persia_hpc.runtime.loop import RankContext
from persia_hpc.runtime.node_memory import available_memory, shared_memory_room
from persia_hpc.runtime.stop import StopSignals
from persia_hpc.runtime.telemetry import Telemetry
from persia_hpc.runtime.watchdog import Watchdog
from persia_hpc.topology.channels import RingBytes, feed_channels, fitting, row_channels
from persia_hpc.topology.communicators import Communicators
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Role
from persia_hpc.transport.plane import Channel, Plane
from persia_hpc.transport.progress import Waiter

from .facts import Facts

LOG = logging.getLogger("persia_hpc")


@dataclass(frozen=True)
class Place:
    """Holds what a role needs to know of the rank that plays it."""

    communicators: Communicators
    ring_bytes: RingBytes
    fair_threads: int  # this rank's part of the cores that it may use
    spin: float  # seconds, before a rank that waits sleeps
    run_dir: Path
    stop: StopSignals
    watchdog: Watchdog
    telemetry: Telemetry
    memory_grows: bool = False  # transport.memory_grows

    @property
    def role_rank(self) -> int:
        """Returns this rank's number among the ranks of its role."""
        return self.communicators.me.role_rank

    def count(self, role: Role) -> int:
        """Returns how many ranks have a role."""
        return self.communicators.plan.count(role)

    def row_plane(self) -> Plane:
        """Makes this rank's end of the rings between servers and workers.

        Collective over servers and workers.
        """
        return self.make_plane(
            self.communicators.row_plane, row_channels(self.communicators.plan, self.ring_bytes)
        )

    def feed_plane(self) -> Plane:
        """Makes this rank's end of the rings between workers and trainers.

        Collective over workers and trainers.
        """
        return self.make_plane(
            self.communicators.feed_plane, feed_channels(self.communicators.plan, self.ring_bytes)
        )

    def make_plane(self, comm: MPI.Intracomm | None, channels: list[Channel]) -> Plane:
        """Makes the rings of a plane that this rank is part of.

        Collective over `comm`.
        """
        assert comm is not None
        return Plane(comm, channels, memory_grows=self.memory_grows)

    def ranks_in_row_plane(self, role: Role) -> list[int]:
        """Returns the ranks in the row plane's communicator of a role, by role rank."""
        return self._ranks(role, self.communicators.row_rank)

    def ranks_in_feed_plane(self, role: Role) -> list[int]:
        """Returns the ranks in the feed plane's communicator of a role, by role rank."""
        return self._ranks(role, self.communicators.feed_rank)

    def context(self, *planes: Plane) -> RankContext:
        """Returns what this rank's loop waits with for records in `planes`, and who watches it."""
        return RankContext(Waiter(*planes, spin=self.spin), self.watchdog, self.stop, self.telemetry)

    def _ranks(self, role: Role, rank_of: Callable[[Role, int], int]) -> list[int]:
        return [rank_of(role, i) for i in range(self.count(role))]


def choose_ring_bytes(facts: Facts, communicators: Communicators) -> RingBytes:
    """Returns the configured ring sizes, or those that batches need and every node has memory for.

    Collective over the world.
    """
    plan, world = communicators.plan, communicators.world
    wanted = ring_sizes(
        facts.config,
        facts.layout,
        facts.schema,
        num_servers=plan.count(Role.PARAMETER_SERVER),
        num_trainers=plan.count(Role.TRAINER),
    )
    if facts.config.transport.ring_bytes is not None:
        return wanted
    found = world.allgather((communicators.me.node, shared_memory_room()[0], available_memory()))
    free = {node: min(f for n, f, _ in found if n == node) for node, num_bytes, _ in found if num_bytes}
    memory = {node: min(m or 0 for n, _, m in found if n == node) for node, _, _ in found}
    size = fitting(plan, wanted, free, memory)
    if world.rank == 0:
        LOG.info("rings: %s%s", size, "" if size == wanted else f", for lack of memory not {wanted}")
    return size
