"""Computes the seconds that the busiest rank of each role needs in a step, by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from persia_hpc.config import Config
from persia_hpc.table_layout import Layout
from persia_hpc.topology.roles import Plan, Role

from .constants import Constants
from .traffic import busiest, dense_traffic
from .work import BatchWork

Phases = dict[str, float]
# By reducer, the part that passes during backward of what could. Of "mpi" as measured between two nodes:
# hooks let MPI work now and then. NCCL's kernels go on by themselves. Horovod's thread gained nothing.
HIDING = {"mpi": 0.47, "nccl": 1.0}
EXCHANGE_COPIES = 8  # of all parameters, to read them, take differences and take over those of others
PARQUET = 4 / 3  # seconds to read it, beside HDF5: processor time of `bench read`, where all cores are busy
PATCHED = 0.24  # of a batch's rows in `fresh`: what recurs within two steps (RESULTS.md: Zipf 1.05, 2,048)
READER = "reader"  # an embedding worker's thread, beside its main one


@dataclass(frozen=True)
class Dense:
    """Holds what the dense model costs a trainer: seconds for each step and for each sample.

    They are seconds on `threads` cores. whole: the seconds include all that a trainer does in a step, such as
    pooling and the optimizer. bytes: of the trained parameters as float32. source: where the figures come
    from. optimizer_seconds: of a step, kept apart since row gradients may be sent before the optimizer runs.
    buckets: `bytes` by the groups in which gradients are summed, in the order in which backward makes them;
    () for a single one. backward_share: the part of step and samples that is backward;
    ahead_share: that which needs no rows (`ahead` of models), as far as it is known.
    """

    step_seconds: float
    sample_seconds: float
    bytes: float
    source: str
    whole: bool = False
    threads: int = 1
    optimizer_seconds: float = 0.0
    buckets: tuple[float, ...] = ()
    # A linear layer's backward is two products of its forward's size; of the whole step of a GPU little else.
    backward_share: float = 2 / 3
    ahead_share: float = 0.0


@dataclass(frozen=True)
class Costs:
    """Holds what a step costs the busiest rank of each role.

    seconds: by role (or `reader`) and phase. allreduce_wait: the part of AllReduce's seconds that is waiting
    rather than computing; negative if another thread polls for longer than the trainer waits. server_threads:
    seconds that a server's further threads compute, beyond those in `seconds`.
    """

    seconds: Mapping[str, Phases]
    allreduce_wait: float
    server_threads: float

    def total(self, role: str) -> float:
        """Returns the seconds of all phases of a role."""
        return sum(self.seconds[role].values())


@dataclass(frozen=True)
class Job:
    """Describes a job to predict: its configuration, its ranks, its batches, and the constants.

    new_rows: share of the pulled rows that don't exist yet, from 0 to 1. factors: by role and phase, what an
    earlier run took as a multiple of its prediction. server_cores: of a server's node, None if unknown.
    """

    config: Config
    layout: Layout
    plan: Plan
    work: BatchWork  # of one trainer
    dense: Dense
    constants: Constants
    link_bytes: float | None = None
    latency_seconds: float = 0.0
    server_cores: int | None = None
    gpus: bool = False
    parquet: bool = False  # what is trained on
    new_rows: float = 0.0
    factors: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def shared_bytes(self) -> float:
        """Returns the bytes of the dense gradients as they travel; in `async` of the parameters."""
        narrow = self.config.mode != "async" and self.config.train.dense_wire != "fp32"
        return self.dense.bytes / (2 if narrow else 1)


def count_costs(job: Job) -> Costs:
    """Returns the costs of the busiest rank of each role; a pure function."""
    c, w, plan = job.constants, job.work, job.plan
    servers, trainers = plan.count(Role.PARAMETER_SERVER), plan.count(Role.TRAINER)
    share = server_share(job.layout, servers)
    rows, threads = w.rows * share, job.config.server_threads
    threads = min(threads, job.server_cores or threads)
    calls = w.num_tables * c.table_call
    pull = rows * (c.pull_row + job.new_rows * c.insert_row) + w.stored_bytes * share * c.pull_byte
    push = rows * c.push_row + w.updated_bytes * share * c.push_byte
    whole_steps = job.config.synchronous or job.config.apply == "step"
    server = {
        "pull": trainers * (calls + pull / threads),
        # A whole step's gradients of a table go in by one call.
        "push": (1 if whole_steps else trainers) * calls + trainers * push / threads,
        "other": trainers * c.server_batch + c.server_step,
    }
    shared = {"pull": pull, "push": push}  # what threads divide
    if job.config.mode == "fresh":  # rows are looked up twice, and some of them sent again
        server["pull"], shared["pull"] = 2 * server["pull"], 2 * pull
        server["patch"], shared["patch"] = trainers * (calls + PATCHED * pull / threads), PATCHED * pull
    batches = max(worker_batches(plan))
    # With several servers rows are put together first; else they go straight from ring to ring.
    copied = w.feed_bytes + (w.row_bytes if servers > 1 else 0.0)
    worker = {
        "dedup": batches * (w.num_features * c.dedup_feature + w.ids * c.dedup_id),
        "pull": batches * w.key_bytes * c.worker_byte,
        "feed": batches * copied * c.worker_byte,
        "push": batches * w.gradient_bytes * c.worker_byte,
        "other": batches * (c.worker_batch + (servers - 1) * c.worker_record),
    }
    if job.config.mode == "fresh":
        worker["patch"] = batches * 2 * PATCHED * w.row_bytes * c.worker_byte
    longer = PARQUET if job.parquet else 1.0
    reader = {"read": batches * (c.read_batch + w.values * c.read_value * longer)}
    dense = 1e9 * (job.dense.step_seconds + w.samples * job.dense.sample_seconds)
    pool = w.num_features * c.pool_feature + w.ids * c.pool_id + w.pooled_bytes * c.pool_byte
    trainer = {
        "pool": 0.0 if job.dense.whole else pool,
        "dense": dense,
        "optimizer": 1e9 * job.dense.optimizer_seconds,
        "push": w.gradient_bytes * c.trainer_byte,
        "other": 0.0 if job.dense.whole else c.trainer_step,
    }
    if job.config.mode == "async":
        allreduce, wait = _exchange(job, trainers, sum(trainer.values()))
    else:
        allreduce, wait = _allreduce(job, trainers, dense * job.dense.backward_share)
    trainer["allreduce"] = allreduce
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
    others = sum(
        trainers * ns * (1 - 1 / threads) * job.factors.get((Role.PARAMETER_SERVER.value, phase), 1.0)
        for phase, ns in shared.items()
    )
    wait *= job.factors.get((Role.TRAINER.value, "allreduce"), 1.0)
    return Costs(seconds, 1e-9 * wait, 1e-9 * others)


def _allreduce(job: Job, trainers: int, backward: float) -> tuple[float, float]:
    """Returns the nanoseconds that a trainer spends in AllReduce, and how many of them it waits.

    backward: the nanoseconds of backward, during which some of it may happen.
    """
    if trainers == 1:
        return 0.0, 0.0
    constants, reducer = job.constants, job.config.train.reducer
    nodes = len({m.node for m in job.plan.of(Role.TRAINER)})
    step, computing = constants.allreduce_step, constants.allreduce_cpu
    if reducer != "horovod":
        step = computing = constants.node_sum
    # Of a ring AllReduce a trainer sends so much, and receives.
    moved = 2 * (trainers - 1) / trainers * job.shared_bytes * constants.allreduce_byte
    if nodes > 1:
        step += 1e9 * 2 * (nodes - 1) * job.latency_seconds
        link = busiest(dense_traffic(job.plan, job.shared_bytes, job.config.mode))
        moved = max(moved, 1e9 * link / (job.link_bytes or float("inf")))
    # Sums within a node need the cores that compute.
    hidden = _hidden(job, step, moved, backward) if nodes > 1 else 0.0
    return step + moved - hidden, step - computing - hidden


def _exchange(job: Job, trainers: int, rest: float) -> tuple[float, float]:
    """Returns the nanoseconds of a step in which a trainer shares its parameters in `async`.

    Also returns what a thread of it takes besides, as less than no wait. rest: all else that a trainer does
    in a step. It reads and changes its parameters when what it sent before has arrived, and not sooner.
    """
    if trainers == 1:
        return 0.0, 0.0
    by_node = Counter(m.node for m in job.plan.of(Role.TRAINER))
    alone = len(by_node) == trainers  # else a thread of one trainer of each node exchanges with other nodes
    ranks = trainers if alone else max(by_node.values())
    arriving = 2 * (ranks - 1) / ranks * job.shared_bytes * job.constants.allreduce_byte
    if alone:
        link = busiest(dense_traffic(job.plan, job.shared_bytes, "async"))
        arriving = max(arriving, 1e9 * link / (job.link_bytes or float("inf")))
        arriving += 1e9 * 2 * job.latency_seconds
    steps = max(1.0, arriving / max(1.0, rest))
    return EXCHANGE_COPIES * job.shared_bytes * job.constants.copy_byte / steps, -arriving / steps


def _hidden(job: Job, step: float, moved: float, backward: float) -> float:
    """Returns how many of the nanoseconds of AllReduce pass during backward.

    A bucket is ready when backward has come to its parameters, for which it needs time in proportion to
    their number, and goes when the one before has gone. step: nanoseconds of any sum; moved: of all bytes.
    """
    train, buckets = job.config.train, job.dense.buckets
    if len(buckets) < 2 or train.cuda_graphs or train.reducer not in HIDING:
        return 0.0
    if job.gpus and train.reducer == "mpi":  # which sums on the host, and copies after backward
        return 0.0
    ready = end = 0.0
    for size in buckets:
        ready += backward * size / job.dense.bytes
        end = max(ready, end) + step + moved * size / job.dense.bytes
    return HIDING[train.reducer] * max(0.0, step + moved - max(0.0, end - backward))


def server_share(layout: Layout, num_servers: int) -> float:
    """Returns the share of a batch's rows, from 0 to 1, that the server with most of them has.

    It is above 1 / num_servers where buckets can't be divided evenly.
    """
    tables = list(zip(layout.bounds(num_servers), layout.tables, strict=True))
    return max(
        sum((b[s + 1] - b[s]) / table.num_buckets for b, table in tables) / len(tables)
        for s in range(num_servers)
    )


def worker_batches(plan: Plan) -> list[float]:
    """Returns how many batches each worker prepares in an average step, by worker_rank."""
    load = [0.0] * plan.count(Role.EMBEDDING_WORKER)
    for workers in plan.workers_of_trainer:
        for worker in workers:
            load[worker] += 1 / len(workers)
    return load
