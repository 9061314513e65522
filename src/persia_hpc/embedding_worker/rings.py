"""Connects an embedding worker to its servers and trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persia_hpc.transport.plane import Plane
from persia_hpc.transport.ring import RingReceiver, RingSender


@dataclass(frozen=True)
class ServerRings:
    """Holds the rings between a worker and a server; patches: in `fresh`."""

    pulls: RingSender
    pushes: RingSender
    rows: RingReceiver
    patches: RingReceiver | None = None


@dataclass(frozen=True)
class TrainerRings:
    """Holds the rings between a worker and a trainer; patches: in `fresh`, where the worker feeds it."""

    feed: RingSender
    gradients: RingReceiver
    patches: RingSender | None = None


@dataclass(frozen=True)
class WorkerPlanes:
    """Holds the planes of a worker and the ranks of its peers in them.

    servers, trainers: ranks in the row plane's and the feed plane's communicator, by server_rank and
    trainer_rank. workers_of_trainer: the worker_ranks that feed each trainer. fresh: with rings for patches.
    """

    row_plane: Plane
    servers: Sequence[int]
    feed_plane: Plane
    trainers: Sequence[int]
    workers_of_trainer: Sequence[tuple[int, ...]]
    fresh: bool = False

    def connect_servers(self) -> list[ServerRings]:
        """Returns the rings to each server, by server_rank."""
        plane = self.row_plane
        return [
            ServerRings(
                plane.sender(rank, "pull"),
                plane.sender(rank, "push"),
                plane.receiver(rank, "rows"),
                plane.receiver(rank, "patch") if self.fresh else None,
            )
            for rank in self.servers
        ]

    def connect_trainers(self, worker_rank: int) -> dict[int, TrainerRings]:
        """Returns by trainer_rank the rings to trainer 0 and to the trainers that this worker feeds."""
        plane = self.feed_plane
        return {
            trainer: TrainerRings(
                plane.sender(rank, "feed"),
                plane.receiver(rank, "gradients"),
                plane.sender(rank, "patch")
                if self.fresh and worker_rank in self.workers_of_trainer[trainer]
                else None,
            )
            for trainer, rank in enumerate(self.trainers)
            if trainer == 0 or worker_rank in self.workers_of_trainer[trainer]
        }
