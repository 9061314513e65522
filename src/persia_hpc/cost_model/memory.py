"""Computes the bytes that each rank of a job holds, beside its program and libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from persia_hpc.config import Config
from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import Layout, server_bytes
from persia_hpc.topology.channels import fitting, ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Plan, Role

from .cluster import Cluster
from .costs import server_share, worker_batches
from .work import BatchWork

DENSE_COPIES = 4  # parameters, gradients, and two moments of Adam
IN_FLIGHT_BYTES = 12  # of a pulled row: its key and slot
WINDOWS = 3  # that batches are taken from, that is decoded, and for a moment its shuffled copy

Memory = Mapping[Role, Mapping[str, int]]


@dataclass(frozen=True)
class Room:
    """Holds the bytes of shared memory and of memory that there are for a job's rings, by node."""

    shared: Mapping[int, int]
    memory: Mapping[int, int]


def role_memory(
    config: Config,
    layout: Layout,
    schema: DatasetSchema,
    plan: Plan,
    work: BatchWork,
    *,
    num_samples: int,
    dense_bytes: float,
    block: int = 0,
    room: Room | None = None,
) -> Memory:
    """Returns the bytes of the largest rank of each role, by what they are for.

    work: of one trainer's batch. num_samples: of the training data. dense_bytes: of the trained parameters.
    block: rows of the largest row group; 0 where there are none. room: what nodes have, which rings must fit
    into; None if that isn't known.
    """
    servers, trainers = plan.count(Role.PARAMETER_SERVER), plan.count(Role.TRAINER)
    size = ring_sizes(config, layout, schema, num_servers=servers, num_trainers=trainers)
    if room is not None and config.transport.ring_bytes is None:
        size = fitting(plan, size, room.shared, room.memory)
    rings = ring_memory(plan, size)[1]
    tables = server_bytes(config, layout, servers, [trainers * n for n in work.table_rows])
    steps = 1 + config.steps_ahead
    share = server_share(layout, servers)
    window = min(max(config.data.block_rows * config.data.buffer_blocks, block), num_samples)
    per_sample = 8 * work.values / work.samples  # dense features and labels have four bytes: a little less
    batches = max(worker_batches(plan))
    owns: dict[Role, dict[str, float]] = {
        Role.PARAMETER_SERVER: {
            "tables, when full": tables,
            "rows in flight": steps * trainers * work.rows * share * IN_FLIGHT_BYTES,
            "old rows during a checkpoint": min(config.checkpoint.aside_bytes, tables),
        },
        Role.EMBEDDING_WORKER: {
            "shuffled samples": WINDOWS * window * per_sample,
            "batches in flight": steps * batches * 8 * (work.rows + work.ids + work.values),
        },
        Role.TRAINER: {"model, gradients and optimizer": DENSE_COPIES * dense_bytes},
    }
    for role, parts in owns.items():
        parts["rings"] = max(rings[rank] for rank in plan.ranks(role))
    return {role: {what: int(n) for what, n in parts.items()} for role, parts in owns.items()}


def node_memory(plan: Plan, memory: Memory) -> dict[int, int]:
    """Returns the bytes of all ranks of each node, by the node's number."""
    nodes = dict.fromkeys(sorted({m.node for m in plan.members}), 0)
    for member in plan.members:
        nodes[member.node] += sum(memory[member.role].values())
    return nodes


def fits(plan: Plan, memory: Memory, cluster: Cluster) -> bool | None:
    """Returns whether each node's ranks fit into its memory; None if the memory of no node is known."""
    nodes = node_memory(plan, memory)
    known = {n: limit for n in nodes if (limit := cluster.node_memory(n)) is not None}
    return all(nodes[n] <= limit for n, limit in known.items()) if known else None
