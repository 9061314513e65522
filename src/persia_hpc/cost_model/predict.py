"""Predicts the samples per second of a job from the stages of a step.

The slowest stage is always busy, the others wait for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from persia_hpc.topology.roles import Plan, Role

from .cluster import Cluster
from .costs import PATCHED, READER, Costs, Job, count_costs, worker_batches
from .traffic import (
    FEED,
    KEYS,
    PUSH,
    ROWS,
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
LINK = "link of node "


@dataclass(frozen=True)
class Stage:
    """Is a stage of the pipeline with the seconds that it needs for a step, as if it had its node alone."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """Holds what the model predicts for one job.

    links: bytes that leave and enter each node in a step, by the node's number. crowding: how many times as
    long computing takes because other cores are busy.
    """

    plan: Plan
    samples: float  # of a step
    stages: tuple[Stage, ...]
    costs: Costs
    links: Mapping[int, tuple[float, float]]
    crowding: float = 1.0

    def seconds(self, stage: Stage) -> float:
        """Returns the seconds that a stage needs for a step of this job."""
        return stage.seconds * (1.0 if stage.name.startswith(LINK) else self.crowding)

    @property
    def bottleneck(self) -> Stage:
        """Returns the slowest stage, which is always busy."""
        return max(self.stages, key=self.seconds)

    @property
    def step_seconds(self) -> float:
        """Returns the seconds of a step."""
        return self.seconds(self.bottleneck)

    @property
    def samples_per_second(self) -> float:
        """Returns the samples per second of all trainers together."""
        return self.samples / self.step_seconds


def predict(job: Job, cluster: Cluster) -> Prediction:
    """Returns what the model predicts for a job on a cluster; a pure function."""
    job = dataclasses.replace(
        job,
        link_bytes=cluster.link_bytes,
        latency_seconds=cluster.latency_seconds or 0.0,
        gpus=cluster.gpus > 0,
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
    computing = _node_seconds(job, costs)
    busy = {n: s / cluster.node_cores(n) for n, s in computing.items()}
    node = max(busy, key=lambda n: busy[n])
    stages.append(Stage(f"cores of node {node}", busy[node]))
    crowding = _crowding(job, computing, max(stage.seconds for stage in stages), cluster)
    if cluster.link_bytes is not None and len(links) > 1:
        waited = links if job.config.mode != "async" else link_traffic(job, dense=False)  # as it has room
        node = max(waited, key=lambda n: max(waited[n]))
        stages.append(Stage(f"{LINK}{node}", max(waited[node]) / cluster.link_bytes))
    samples = job.work.samples * job.plan.count(Role.TRAINER)
    return Prediction(job.plan, samples, tuple(stages), costs, links, crowding)


def link_traffic(job: Job, *, dense: bool = True) -> dict[int, tuple[float, float]]:
    """Returns the bytes that leave and enter each node in a step, by the node's number.

    What ranks of one node send each other is not counted. dense: with what combines the dense models.
    """
    hops = list(embedding_traffic(job.plan, job.work, all_turns(job.plan), _patched(job)).values())
    if dense:
        hops.append(dense_traffic(job.plan, job.shared_bytes, job.config.mode))
    return node_traffic(job.plan, hops)


def _path(job: Job, costs: Costs, *, late: bool) -> float:
    """Returns the seconds from the answer to a step's first pull until its last gradient is applied.

    late: row gradients are sent after the optimizer, so it delays them, as AllReduce always does. If nothing
    is prefetched, the request of the pull counts too, since it waits until the step before is done.
    """
    worker, trainer = costs.seconds[WORKER], costs.seconds[TRAINER]
    asked = job.config.data.prefetch == 0
    fresh = job.config.mode == "fresh"  # its rows came before
    whole = worker["patch" if fresh else "feed"] + worker["push"] + worker["other"] / 2
    if asked and not fresh:
        whole += worker["dedup"] + worker["pull"] + worker["other"] / 2
    server = costs.total(SERVER) - (costs.seconds[SERVER]["pull"] if fresh else 0.0)
    seconds = server + whole * _whole_batches(job)
    ahead = trainer["dense"] * job.dense.ahead_share if fresh else 0.0  # while the patch is on its way
    rest = trainer["pool"] + trainer["dense"] - ahead + trainer["push"]
    # In `async` dense parameters are shared after the push, unless that is late.
    rest += trainer["allreduce"] * (late or job.config.mode != "async")
    rest += trainer["optimizer"] * late
    hops = _slowest_hops(job)
    if fresh or not asked:
        del hops[KEYS]
    if fresh:
        del hops[ROWS], hops[FEED]
        hops[PUSH] *= PATCHED if _goes_first(job) else 1.0
    seconds += len(hops) * 1e-9 * job.constants.wake
    seconds += sum(job.latency_seconds for num_bytes in hops.values() if num_bytes)
    seconds += sum(hops.values()) / (job.link_bytes or float("inf"))
    return max(seconds, ahead) + rest


def _goes_first(job: Job) -> bool:
    """Returns whether gradients that a patch of `fresh` waits for go ahead of others (docs/algorithm.md)."""
    tables = job.config.tables.values()
    simple = all(t.eviction == "lru" and not t.ttl and not t.admission and t.disk is None for t in tables)
    return simple and job.config.export.dir is None


def _patched(job: Job) -> float:
    return PATCHED if job.config.mode == "fresh" else 0.0


def _whole_batches(job: Job) -> float:
    """Returns the ratio between a worker's step in which it has its turn and its average step.

    It is above 1 where several workers of a trainer take turns.
    """
    batches = max(worker_batches(job.plan))
    return max(1.0, batches) / batches


def _slowest_hops(job: Job) -> dict[str, float]:
    """Returns the bytes of each hop on the link with most of them, in the step that has most."""
    hops: dict[str, float] = {}
    for number in range(max(len(by) for by in job.plan.workers_of_trainer)):
        traffic: Mapping[str, Link] = embedding_traffic(
            job.plan, job.work, one_step(job.plan, number), _patched(job)
        )
        for hop, nodes in traffic.items():
            hops[hop] = max(hops.get(hop, 0.0), busiest(nodes))
    return hops


def _in_step(job: Job, costs: Costs, cluster: Cluster) -> float:
    """Returns the seconds of a step in which servers and workers take turns on the trainers' cores.

    AllReduce binds the trainers, so a delay of one delays all. Ranks of one role cause their delays at the
    same time, those of different roles add up. The result is 0 if AllReduce doesn't bind them, or if each
    node has more cores than trainers.
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


def _crowding(job: Job, seconds: Mapping[int, float], step: float, cluster: Cluster) -> float:
    """Returns how many times as long computing takes because other cores of its node are busy.

    seconds: what each node's ranks compute in a step of `step` seconds. Of the node that is busiest; 1 with
    figures of a run, or of a GPU, which have it in them.
    """
    if job.factors or job.dense.whole:
        return 1.0
    shares = [0.0]
    for node, computing in seconds.items():
        cores = cluster.node_cores(node)
        if cores > 1 and step > 0:
            shares.append(min(1.0, max(0.0, computing / step - 1) / (cores - 1)))
    return 1 + 1e-3 * job.constants.crowded * max(shares)


def _node_seconds(job: Job, costs: Costs) -> dict[int, float]:
    """Returns the seconds that all ranks of each node compute in a step."""
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
