"""Says which rings a job has, and how large they are: a pure function of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from persia_hpc.transport.placement import Channel, place

from .roles import FEED_PLANE, ROW_PLANE, Plan, Role

GRANULE = 1 << 12
LEAST = 1 << 16
MOST = 256 << 20  # of a ring between two ranks that both poll all the time


@dataclass(frozen=True)
class RingBytes:
    """Holds the size in bytes of each kind of ring."""

    pull: int
    push: int
    rows: int
    feed: int
    gradients: int
    patch: int = 0  # 0: there are no such rings

    @staticmethod
    def same(num_bytes: int) -> RingBytes:
        """Returns the same size for all kinds but patches."""
        return RingBytes(*[num_bytes] * 5)

    def scaled(self, factor: float) -> RingBytes:
        """Returns all sizes times `factor`, rounded down to whole granules."""
        return RingBytes(
            *(max(LEAST, int(n * factor) // GRANULE * GRANULE) if n else 0 for n in astuple(self))
        )

    def capped(self) -> RingBytes:
        """Returns the sizes with none above MOST."""
        return RingBytes(*(min(MOST, n) for n in astuple(self)))


def row_channels(plan: Plan, size: RingBytes) -> list[Channel]:
    """Returns three rings between every worker and every server: for pulls, pushes and rows.

    Pulls and pushes are apart because a pull that must wait may not block the push it waits for. A fourth, in
    `fresh`, is for patches: over a slow link one may not wait for the rows of later batches.
    """
    channels = []
    for w in range(plan.count(Role.EMBEDDING_WORKER)):
        worker = plan.row_rank(Role.EMBEDDING_WORKER, w)
        for s in range(plan.count(Role.PARAMETER_SERVER)):
            server = plan.row_rank(Role.PARAMETER_SERVER, s)
            channels += [
                Channel(worker, server, "pull", size.pull),
                Channel(worker, server, "push", size.push),
                Channel(server, worker, "rows", size.rows),
            ]
            if size.patch:
                channels.append(Channel(server, worker, "patch", min(size.patch, size.rows)))
    return channels


def feed_channels(plan: Plan, size: RingBytes) -> list[Channel]:
    """Returns two rings between each trainer and each worker that feeds it: batches and gradients.

    A third, in `fresh`, is for the patches of batches: a patch may not wait for room behind later batches.
    Trainer 0, which commands, has both rings with every worker; small ones where the worker doesn't feed it.
    """
    channels = []
    command = min(LEAST, size.feed)
    for t, workers in enumerate(plan.workers_of_trainer):
        trainer = plan.feed_rank(Role.TRAINER, t)
        for w in range(plan.count(Role.EMBEDDING_WORKER)) if t == 0 else workers:
            worker = plan.feed_rank(Role.EMBEDDING_WORKER, w)
            channels += [
                Channel(worker, trainer, "feed", size.feed if w in workers else command),
                Channel(trainer, worker, "gradients", size.gradients if w in workers else command),
            ]
            if size.patch and w in workers:
                channels.append(Channel(worker, trainer, "patch", size.patch))
    return channels


def ring_memory(plan: Plan, size: RingBytes) -> tuple[list[int], list[int]]:
    """Returns the rings' bytes of each world rank: those in memory shared on its node, and all of them."""
    shared, both = [0] * len(plan.members), [0] * len(plan.members)
    for roles, channels in (
        (ROW_PLANE, row_channels(plan, size)),
        (FEED_PLANE, feed_channels(plan, size)),
    ):
        ranks = plan.plane(roles)
        sizes = place(channels, [plan.members[r].node for r in ranks], force_remote=False)[1]
        for i, rank in enumerate(ranks):
            shared[rank] += sizes.shared[i]
            both[rank] += sizes.shared[i] + sizes.fetched[i] + sizes.private[i]
    return shared, both


def fitting(
    plan: Plan, size: RingBytes, free: Mapping[int, int], memory: Mapping[int, int] | None = None
) -> RingBytes:
    """Returns the sizes, made smaller if a node's rings would fill over 3/4 of its free shared memory.

    What trainers' rings have above MOST goes first: already if all rings of a node, in shared memory or not,
    would take over 3/4 of that or of the node's available memory, or if a node's isn't known. Then all rings
    shrink alike.

    free: the free bytes of shared memory by node. memory: the available bytes of memory; None: as many.
    """
    memory = free if memory is None else memory
    least = {n: min(free[n], memory[n]) for n in free.keys() & memory.keys()}
    nodes = {member.node for member in plan.members}
    if nodes - least.keys() or _room(plan, ring_memory(plan, size)[1], least) < 1:
        size = size.capped()
    factor = _room(plan, ring_memory(plan, size)[0], free)
    return size if factor >= 1 else size.scaled(factor)


def _room(plan: Plan, rings: list[int], free: Mapping[int, int]) -> float:
    """Returns how many times the rings of the fullest node fit into 3/4 of its free shared memory.

    rings: the bytes of each rank.
    """
    wanted = dict.fromkeys(free, 0)
    for member, num_bytes in zip(plan.members, rings, strict=True):
        if member.node in wanted:
            wanted[member.node] += num_bytes
    return min((0.75 * free[n] / wanted[n] for n in free if wanted[n]), default=1.0)
