"""Seconds that the busiest rank of each role computes in a step, by phase; and bytes on each node's link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from persia_hpc.config import Config
from persia_hpc.layout import Layout
from persia_hpc.topology.roles import Plan, Role

from .constants import Constants
from .work import BatchWork

Phases = dict[str, float]
READER = "reader"  # an embedding worker's thread, beside its main one


@dataclass(frozen=True)
class Dense:
    """What the dense model costs a trainer: seconds a step and a sample, on `threads` cores.

    whole: pooling and whatever else a trainer's step needs are in it. bytes: of the trained parameters as
    float32. source: where the figures come from.
    """

    step_seconds: float
    sample_seconds: float
    bytes: float
    source: str
    whole: bool = False
    threads: int = 1


@dataclass(frozen=True)
class Costs:
    """seconds: by role (or `reader`) and phase, of a step. allreduce_wait: what of AllReduce is no work, and
    may be negative: another thread polls meanwhile.
    """

    seconds: Mapping[str, Phases]
    allreduce_wait: float

    def total(self, role: str) -> float:
        """Of all phases."""
        return sum(self.seconds[role].values())


@dataclass(frozen=True)
class Job:
    """What is to be run, where, and by which constants.

    new_rows: share of the pulled rows that don't exist yet. factors: by role and phase, for what an earlier
    run has measured.
    """

    config: Config
    layout: Layout
    plan: Plan
    work: BatchWork  # of one trainer
    dense: Dense
    constants: Constants
    link_bytes: float | None = None
    latency_seconds: float = 0.0
    new_rows: float = 0.0
    factors: Mapping[tuple[str, str], float] = field(default_factory=dict)


def count_costs(job: Job) -> Costs:
    """The costs of the busiest rank of each role; a pure function."""
    c, w, plan = job.constants, job.work, job.plan
    servers, trainers = plan.count(Role.PARAMETER_SERVER), plan.count(Role.TRAINER)
    share = server_share(job.layout, servers)
    rows, threads = w.rows * share, job.config.server_threads
    calls = w.num_tables * c.table_call
    pull = rows * (c.pull_row + job.new_rows * c.insert_row) + w.stored_bytes * share * c.pull_byte
    push = rows * c.push_row + w.updated_bytes * share * c.push_byte
    server = {
        "pull": trainers * (calls + pull / threads),
        "push": trainers * (calls + push / threads),
        "other": trainers * c.server_batch,
    }
    batches = max(worker_batches(plan))
    # With several servers rows are put together first; else they go straight from ring to ring.
    copied = w.feed_bytes + (w.row_bytes if servers > 1 else 0.0)
    worker = {
        "dedup": batches * (w.num_features * c.dedup_feature + w.ids * c.dedup_id),
        "pull": batches * w.key_bytes * c.copy_byte,
        "feed": batches * copied * c.copy_byte,
        "push": batches * w.gradient_bytes * c.copy_byte,
        "other": batches * (c.worker_batch + (servers - 1) * c.worker_record),
    }
    reader = {"read": batches * (c.read_batch + w.values * c.read_value)}
    allreduce, wait = _allreduce(job, trainers)
    dense = 1e9 * (job.dense.step_seconds + w.samples * job.dense.sample_seconds)
    pool = w.num_features * c.pool_feature + w.ids * c.pool_id + w.pooled_bytes * c.pool_byte
    trainer = {
        "pool": 0.0 if job.dense.whole else pool,
        "dense": dense,
        "push": w.gradient_bytes * c.copy_byte,
        "allreduce": allreduce,
        "other": 0.0 if job.dense.whole else c.trainer_step,
    }
    named = {
        Role.PARAMETER_SERVER.value: server,
        Role.EMBEDDING_WORKER.value: worker,
        READER: reader,
        Role.TRAINER.value: trainer,
    }
    seconds = {
        role: {phase: 1e-9 * ns * job.factors.get((role, phase), 1.0) for phase, ns in phases.items()}
        for role, phases in named.items()
    }
    return Costs(seconds, 1e-9 * wait * job.factors.get((Role.TRAINER.value, "allreduce"), 1.0))


def _allreduce(job: Job, trainers: int) -> tuple[float, float]:
    """Nanoseconds of a trainer's, and what of that is waiting."""
    if trainers == 1:
        return 0.0, 0.0
    nodes = len({m.node for m in job.plan.of(Role.TRAINER)})
    travelling = dense_traffic(job.dense, trainers)
    moved = travelling * job.constants.allreduce_byte
    wait = 0.0 if job.config.mode == "async" else job.constants.allreduce_step
    if nodes > 1:
        wait += 1e9 * 2 * (nodes - 1) * job.latency_seconds
        moved = max(moved, 1e9 * travelling / (job.link_bytes or float("inf")))
    return wait + moved, wait - (0.0 if job.config.mode == "async" else job.constants.allreduce_cpu)


def dense_traffic(dense: Dense, trainers: int) -> float:
    """Bytes that a trainer sends in a step, and receives: of a ring AllReduce; in `async` as many."""
    return 2 * (trainers - 1) / trainers * dense.bytes


def server_share(layout: Layout, num_servers: int) -> float:
    """The largest server's share of a batch's rows; more than an even one where buckets don't divide."""
    tables = list(zip(layout.bounds(num_servers), layout.tables, strict=True))
    return max(
        sum((b[s + 1] - b[s]) / table.num_buckets for b, table in tables) / len(tables)
        for s in range(num_servers)
    )


def worker_batches(plan: Plan) -> list[float]:
    """Batches a step that each worker prepares, by worker_rank."""
    load = [0.0] * plan.count(Role.EMBEDDING_WORKER)
    for workers in plan.workers_of_trainer:
        for worker in workers:
            load[worker] += 1 / len(workers)
    return load


def link_traffic(job: Job) -> dict[int, tuple[float, float]]:
    """Bytes out of and into each node in a step, by its number; not what its own ranks exchange."""
    plan, w = job.plan, job.work
    out: dict[int, float] = dict.fromkeys(sorted({m.node for m in plan.members}), 0.0)
    into = dict(out)

    def send(a: int, b: int, num_bytes: float) -> None:
        if a != b:
            out[a] += num_bytes
            into[b] += num_bytes

    servers = [m.node for m in plan.of(Role.PARAMETER_SERVER)]
    workers = {m.role_rank: m.node for m in plan.of(Role.EMBEDDING_WORKER)}
    trainers = {m.role_rank: m.node for m in plan.of(Role.TRAINER)}
    for trainer, fed_by in enumerate(plan.workers_of_trainer):
        for worker in fed_by:
            here, part = workers[worker], 1 / len(fed_by)
            send(here, trainers[trainer], part * w.feed_bytes)
            send(trainers[trainer], here, part * w.gradient_bytes)
    for worker, batches in enumerate(worker_batches(plan)):
        for server in servers:
            part = batches / len(servers)
            send(workers[worker], server, part * (w.key_bytes + w.gradient_bytes))
            send(server, workers[worker], part * w.row_bytes)
    with_trainers = sorted(set(trainers.values()))
    for node in with_trainers if len(with_trainers) > 1 else ():
        out[node] += dense_traffic(job.dense, len(trainers))  # a ring enters and leaves each node once
        into[node] += dense_traffic(job.dense, len(trainers))
    return {node: (out[node], into[node]) for node in out}
