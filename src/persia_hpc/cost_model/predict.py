"""Samples per second of a job: the slowest of its stages, each of which is busy or waits for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from persia_hpc.topology.roles import Plan, Role

from .cluster import Cluster
from .costs import READER, Costs, Job, count_costs, worker_batches
from .traffic import (
    KEYS,
    Link,
    all_turns,
    busiest,
    dense_traffic,
    embedding_traffic,
    node_traffic,
    one_step,
)

SERVER, WORKER, TRAINER = "parameter_server", "embedding_worker", "trainer"  # values of Role
IN_STEP = "trainers in step on shared cores"


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
        job,
        link_bytes=cluster.link_bytes,
        latency_seconds=cluster.latency_seconds or 0.0,
        server_cores=min(cluster.node_cores(m.node) for m in job.plan.of(Role.PARAMETER_SERVER)),
    )
    costs, links = count_costs(job), link_traffic(job)
    path = _path(job, costs, late=cluster.gpus > 0 or job.config.train.amp == "fp16")
    bound = job.config.pull_bound
    stages = [
        Stage("trainers", costs.total(TRAINER)),
        Stage("embedding workers", costs.total(WORKER)),
        Stage("reading threads", costs.total(READER)),
        Stage("parameter servers", costs.total(SERVER)),
        Stage("one step at a time" if bound == 0 else f"staleness bound {bound}", path / (bound + 1)),
    ]
    if (seconds := _in_step(job, costs, cluster)) > 0:
        stages.append(Stage(IN_STEP, seconds))
    busy = {n: s / cluster.node_cores(n) for n, s in _node_seconds(job, costs).items()}
    node = max(busy, key=lambda n: busy[n])
    stages.append(Stage(f"cores of node {node}", busy[node]))
    if cluster.link_bytes is not None and len(links) > 1:
        node = max(links, key=lambda n: max(links[n]))
        stages.append(Stage(f"link of node {node}", max(links[node]) / cluster.link_bytes))
    samples = job.work.samples * job.plan.count(Role.TRAINER)
    return Prediction(job.plan, samples, tuple(stages), costs, links)


def link_traffic(job: Job) -> dict[int, tuple[float, float]]:
    """Bytes out of and into each node in a step, by its number; not what its own ranks exchange."""
    hops = embedding_traffic(job.plan, job.work, all_turns(job.plan))
    dense = dense_traffic(job.plan, job.dense.bytes, job.config.mode)
    return node_traffic(job.plan, [*hops.values(), dense])


def _path(job: Job, costs: Costs, *, late: bool) -> float:
    """Seconds from the answer to a step's first pull until its last gradient is in the tables.

    late: row gradients are sent after AllReduce and optimizer; else before, and those aren't in the way.
    With nothing prefetched a pull is asked for only when the step that it waits for is done.
    """
    worker, trainer = costs.seconds[WORKER], costs.seconds[TRAINER]
    asked = job.config.data.prefetch == 0
    whole = worker["feed"] + worker["push"] + worker["other"] / 2
    if asked:
        whole += worker["dedup"] + worker["pull"] + worker["other"] / 2
    seconds = costs.total(SERVER) + whole * _whole_batches(job)
    seconds += trainer["pool"] + trainer["dense"] + trainer["push"]
    seconds += (trainer["allreduce"] + trainer["optimizer"]) * late
    hops = _slowest_hops(job)
    if not asked:
        del hops[KEYS]
    seconds += len(hops) * 1e-9 * job.constants.wake
    seconds += sum(job.latency_seconds for num_bytes in hops.values() if num_bytes)
    return seconds + sum(hops.values()) / (job.link_bytes or float("inf"))


def _whole_batches(job: Job) -> float:
    """By what a worker's mean step is multiplied for one in which it has its turn."""
    batches = max(worker_batches(job.plan))
    return max(1.0, batches) / batches


def _slowest_hops(job: Job) -> dict[str, float]:
    """Bytes of each hop on the link that has most to do, at the step for which it has most."""
    hops: dict[str, float] = {}
    for number in range(max(len(by) for by in job.plan.workers_of_trainer)):
        traffic: Mapping[str, Link] = embedding_traffic(job.plan, job.work, one_step(job.plan, number))
        for hop, nodes in traffic.items():
            hops[hop] = max(hops.get(hop, 0.0), busiest(nodes))
    return hops


def _in_step(job: Job, costs: Costs, cluster: Cluster) -> float:
    """Seconds of trainers that wait for each other while servers and workers take turns on their cores.

    Whatever delays one of them delays all. Ranks of one role delay them at the same time, roles one after the
    other. 0 where AllReduce doesn't bind them, or each node has a core besides.
    """
    trainers = job.plan.of(Role.TRAINER)
    if len(trainers) == 1 or job.config.mode == "async":
        return 0.0
    wait = max(0.0, costs.allreduce_wait)
    computing, longest = costs.total(TRAINER) - wait, 0.0
    for node in {m.node for m in trainers}:
        roles = {m.role for m in job.plan.members if m.node == node}
        share = sum(m.node == node for m in trainers) / cluster.node_cores(node)
        if share >= 1:
            others = costs.total(SERVER) * (Role.PARAMETER_SERVER in roles)
            if Role.EMBEDDING_WORKER in roles:
                others += (costs.total(WORKER) + costs.total(READER)) * _whole_batches(job)
            longest = max(longest, computing * share + wait + others)
    return longest


def _node_seconds(job: Job, costs: Costs) -> dict[int, float]:
    """Seconds of computing in a step, of all ranks of each node."""
    trainer = costs.seconds[TRAINER]
    # The other threads compute, or spin.
    threaded = (trainer["dense"] + trainer["optimizer"]) * (job.dense.threads - 1)
    each = {
        SERVER: costs.total(SERVER) + costs.server_threads,
        WORKER: (costs.total(WORKER) + costs.total(READER)) / max(worker_batches(job.plan)),
        TRAINER: costs.total(TRAINER) - costs.allreduce_wait + threaded,
    }
    load = worker_batches(job.plan)
    seconds = dict.fromkeys({m.node for m in job.plan.members}, 0.0)
    for member in job.plan.members:
        part = load[member.role_rank] if member.role is Role.EMBEDDING_WORKER else 1.0
        seconds[member.node] += part * each[member.role.value]
    return seconds
