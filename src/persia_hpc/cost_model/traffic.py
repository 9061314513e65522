"""Counts the bytes on each node's link in a step, by hop.

What ranks of one node send each other is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from persia_hpc.topology.roles import Plan, Role

from .work import BatchWork

Link = Mapping[int, tuple[float, float]]  # out of and into each node that has a part in it
KEYS, ROWS, FEED, GRADIENTS, PUSH, DENSE = "keys", "rows", "feed", "gradients", "push", "dense"
PATCH, PATCH_FEED = "patch", "patch to trainer"


@dataclass(frozen=True)
class Turn:
    """Says which part, from 0 to 1, of a trainer's batches a worker prepares."""

    worker: int
    trainer: int
    part: float


def all_turns(plan: Plan) -> list[Turn]:
    """Returns the part of each trainer's batches that each worker prepares in an average step."""
    fed = enumerate(plan.workers_of_trainer)
    return [Turn(worker, trainer, 1 / len(by)) for trainer, by in fed for worker in by]


def one_step(plan: Plan, number: int) -> list[Turn]:
    """Returns which worker prepares each trainer's batch in step `number`.

    It matters where several workers of a trainer take turns.
    """
    return [Turn(by[number % len(by)], t, 1.0) for t, by in enumerate(plan.workers_of_trainer)]


def embedding_traffic(
    plan: Plan, work: BatchWork, turns: Iterable[Turn], patched: float = 0.0
) -> dict[str, Link]:
    """Returns the bytes of keys, rows, batches and gradients between nodes, by hop.

    patched: the part, from 0 to 1, of the rows that is sent again before they are used.

    The hops are keys (worker to servers), rows (servers to worker), feed (batch to the trainer), gradients
    (trainer to worker) and push (gradients from worker to servers); two more where rows are patched.
    """
    servers = Counter(m.node for m in plan.of(Role.PARAMETER_SERVER))
    workers = {m.role_rank: m.node for m in plan.of(Role.EMBEDDING_WORKER)}
    trainers = {m.role_rank: m.node for m in plan.of(Role.TRAINER)}
    names = (KEYS, ROWS, FEED, GRADIENTS, PUSH, *([PATCH, PATCH_FEED] if patched else []))
    hops: dict[str, dict[int, tuple[float, float]]] = {hop: {} for hop in names}

    def send(hop: str, a: int, b: int, num_bytes: float) -> None:
        if a != b:
            for node, out, into in ((a, num_bytes, 0.0), (b, 0.0, num_bytes)):
                before = hops[hop].get(node, (0.0, 0.0))
                hops[hop][node] = before[0] + out, before[1] + into

    for turn in turns:
        worker, trainer = workers[turn.worker], trainers[turn.trainer]
        send(FEED, worker, trainer, turn.part * work.feed_bytes)
        send(GRADIENTS, trainer, worker, turn.part * work.gradient_bytes)
        if patched:
            send(PATCH_FEED, worker, trainer, turn.part * patched * work.row_bytes)
        for server, count in servers.items():
            part = turn.part * count / servers.total()
            send(KEYS, worker, server, part * work.key_bytes)
            send(ROWS, server, worker, part * work.row_bytes)
            send(PUSH, worker, server, part * work.gradient_bytes)
            if patched:
                send(PATCH, server, worker, part * patched * work.row_bytes)
    return dict(hops)


def dense_traffic(plan: Plan, dense_bytes: float, mode: str) -> Link:
    """Returns the bytes that leave and enter each node to combine the trainers' dense models.

    The data of a ring AllReduce leaves and enters each node once, however many trainers the node has. In
    `async` mode one trainer of each node sends the node's changes to the slices of the parameters that those
    of other nodes hold, and receives these slices back: at most once in each of its steps, which is assumed.
    """
    nodes = {m.node for m in plan.of(Role.TRAINER)}
    if len(nodes) == 1:
        return {}
    ranks = len(nodes) if mode == "async" else plan.count(Role.TRAINER)
    return dict.fromkeys(nodes, (2 * (ranks - 1) / ranks * dense_bytes,) * 2)


def node_traffic(plan: Plan, hops: Iterable[Link]) -> dict[int, tuple[float, float]]:
    """Returns the bytes of all given hops together that leave and enter each node of a plan."""
    nodes = dict.fromkeys(sorted({m.node for m in plan.members}), (0.0, 0.0))
    for hop in hops:
        for node, (out, into) in hop.items():
            nodes[node] = nodes[node][0] + out, nodes[node][1] + into
    return nodes


def busiest(hop: Link) -> float:
    """Returns the bytes on the busiest link of a hop, in the link's busier direction."""
    return max((max(both) for both in hop.values()), default=0.0)
