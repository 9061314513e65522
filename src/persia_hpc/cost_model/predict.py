"""Samples per second of a job: the slowest of its stages, each of which is busy or waits for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from persia_hpc.topology.roles import Plan, Role

from .cluster import Cluster
from .costs import READER, Costs, Job, count_costs, link_traffic, worker_batches

SERVER, WORKER, TRAINER = "parameter_server", "embedding_worker", "trainer"  # values of Role
HOPS = 4  # rows to the worker, batch to the trainer, gradients to the worker, gradients to the server


@dataclass(frozen=True)
class Stage:
    """Something that a step can't be faster than."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one job; `links`: bytes out and in of a step, by node."""

    plan: Plan
    samples: float  # of a step
    stages: tuple[Stage, ...]
    costs: Costs
    links: Mapping[int, tuple[float, float]]

    @property
    def bottleneck(self) -> Stage:
        """The stage that is always busy."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def step_seconds(self) -> float:
        return self.bottleneck.seconds

    @property
    def samples_per_second(self) -> float:
        """Over all trainers."""
        return self.samples / self.step_seconds


def predict(job: Job, cluster: Cluster) -> Prediction:
    """What the model says of a job on a cluster; a pure function."""
    job = dataclasses.replace(
        job, link_bytes=cluster.link_bytes, latency_seconds=cluster.latency_seconds or 0.0
    )
    costs, links = count_costs(job), link_traffic(job)
    path = _path(job, costs, late=cluster.gpus > 0 or job.config.train.amp == "fp16")
    bound = 0 if job.config.mode == "sync" else job.config.staleness_bound
    stages = [
        Stage("trainers", costs.total(TRAINER)),
        Stage("embedding workers", costs.total(WORKER)),
        Stage("reading threads", costs.total(READER)),
        Stage("parameter servers", costs.total(SERVER)),
        Stage("one step at a time" if bound == 0 else f"staleness bound {bound}", path / (bound + 1)),
    ]
    busy = {n: s / _free_cores(job, cluster, n) for n, s in _node_seconds(job, costs).items()}
    node = max(busy, key=lambda n: busy[n])
    stages.append(Stage(f"cores of node {node}", busy[node]))
    if cluster.link_bytes is not None and len(links) > 1:
        node = max(links, key=lambda n: max(links[n]))
        stages.append(Stage(f"link of node {node}", max(links[node]) / cluster.link_bytes))
    samples = job.work.samples * job.plan.count(Role.TRAINER)
    return Prediction(job.plan, samples, tuple(stages), costs, links)


def _path(job: Job, costs: Costs, *, late: bool) -> float:
    """Seconds from the answer to a step's first pull until its last gradient is in the tables.

    late: row gradients are sent after AllReduce; else before, and it isn't in the way.
    """
    worker, trainer = costs.seconds[WORKER], costs.seconds[TRAINER]
    seconds = costs.total(SERVER) + worker["feed"] + worker["push"] + worker["other"] / 2
    seconds += trainer["pool"] + trainer["dense"] + trainer["push"] + trainer["allreduce"] * late
    seconds += HOPS * 1e-9 * job.constants.wake
    nodes = {m.node for m in job.plan.members}
    if len(nodes) > 1:
        w, batches = job.work, max(worker_batches(job.plan))
        carried = batches * (w.row_bytes + w.gradient_bytes) + w.feed_bytes + w.gradient_bytes
        seconds += HOPS * job.latency_seconds + carried / (job.link_bytes or float("inf"))
    return seconds


def _free_cores(job: Job, cluster: Cluster, node: int) -> float:
    """What Horovod's threads leave, which poll all the time; at least a tenth of the cores."""
    cores, trainers = cluster.node_cores(node), job.plan.of(Role.TRAINER)
    here = sum(m.node == node for m in trainers)
    reduces = len(trainers) > 1 and job.config.mode != "async"
    return max(0.1 * cores, cores - 1e-3 * job.constants.horovod_us * here * reduces)


def _node_seconds(job: Job, costs: Costs) -> dict[int, float]:
    """Seconds of computing in a step, of all ranks of each node."""
    trainer = costs.seconds[TRAINER]
    threaded = trainer["dense"] * (job.dense.threads - 1)  # the other threads compute, or spin
    each = {
        SERVER: costs.total(SERVER),
        WORKER: (costs.total(WORKER) + costs.total(READER)) / max(worker_batches(job.plan)),
        TRAINER: costs.total(TRAINER) - costs.allreduce_wait + threaded,
    }
    load = worker_batches(job.plan)
    seconds = dict.fromkeys({m.node for m in job.plan.members}, 0.0)
    for member in job.plan.members:
        part = load[member.role_rank] if member.role is Role.EMBEDDING_WORKER else 1.0
        seconds[member.node] += part * each[member.role.value]
    return seconds
