"""Bytes that each rank of a job holds, beside its program and libraries."""

from __future__ import annotations

from collections.abc import Mapping

from persia_hpc.samples.schema import DatasetSchema
from persia_hpc.table_layout import server_bytes
from persia_hpc.topology.channels import ring_memory
from persia_hpc.topology.ring_sizes import ring_sizes
from persia_hpc.topology.roles import Plan, Role

from .cluster import Cluster
from .costs import Job, server_share, worker_batches

GROWING_BYTES = 6  # a row while a table grows, on average, beyond what a full one has (benchmarks/RESULTS.md)
DENSE_COPIES = 4  # parameters, gradients, and two moments of Adam
IN_FLIGHT_BYTES = 12  # of a pulled row: its key and slot

Memory = Mapping[Role, Mapping[str, int]]


def role_memory(job: Job, schema: DatasetSchema, num_samples: int) -> Memory:
    """Of the largest rank of each role, by what it is for; num_samples: of the training data."""
    config, plan, work = job.config, job.plan, job.work
    servers, trainers = plan.count(Role.PARAMETER_SERVER), plan.count(Role.TRAINER)
    size = ring_sizes(config, job.layout, schema, num_servers=servers, num_trainers=trainers)
    rings = ring_memory(plan, size)[1]
    share = server_share(job.layout, servers)
    growing = GROWING_BYTES * share * sum(table.capacity_rows for table in job.layout.tables)
    steps = 1 + config.data.prefetch + config.pull_bound
    window = min(config.data.block_rows * config.data.buffer_blocks, num_samples)
    per_sample = 8 * work.values / work.samples  # dense features and labels have four bytes: a little less
    batches = max(worker_batches(plan))
    owns: dict[Role, dict[str, float]] = {
        Role.PARAMETER_SERVER: {
            "tables, when full": server_bytes(job.layout, servers),
            "index while they grow": growing,
            "rows in flight": steps * trainers * work.rows * share * IN_FLIGHT_BYTES,
            "old rows during a checkpoint": config.checkpoint.aside_bytes,
        },
        Role.EMBEDDING_WORKER: {
            "shuffled samples": window * per_sample,
            "batches in flight": steps * batches * 8 * (work.rows + work.ids + work.values),
        },
        Role.TRAINER: {"model, gradients and optimizer": DENSE_COPIES * job.dense.bytes},
    }
    for role, parts in owns.items():
        parts["rings"] = max(rings[rank] for rank in plan.ranks(role))
    return {role: {what: int(n) for what, n in parts.items()} for role, parts in owns.items()}


def node_memory(plan: Plan, memory: Memory) -> dict[int, int]:
    """Of all ranks of each node, by its number."""
    nodes = dict.fromkeys(sorted({m.node for m in plan.members}), 0)
    for member in plan.members:
        nodes[member.node] += sum(memory[member.role].values())
    return nodes


def fits(plan: Plan, memory: Memory, cluster: Cluster) -> bool | None:
    """Whether each node's ranks fit into its memory; None where nobody has said how much there is."""
    nodes = node_memory(plan, memory)
    known = {n: limit for n in nodes if (limit := cluster.node_memory(n)) is not None}
    return all(nodes[n] <= limit for n, limit in known.items()) if known else None
